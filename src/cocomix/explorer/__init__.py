"""The explorer: a web page that shows what a run makes of a text, its concepts, and what turning them does.

What the views show is computed in plain modules (`reading`, `concepts`, `steering`); the modules named `…_page` and
`app` need Gradio.
"""

from cocomix.explorer.guard import find_password
from cocomix.explorer.limits import LIMITS, Limits
from cocomix.explorer.server import serve, serving
from cocomix.explorer.subject import Subject, open_subject

__all__ = ["LIMITS", "Limits", "Subject", "find_password", "open_subject", "serve", "serving"]
