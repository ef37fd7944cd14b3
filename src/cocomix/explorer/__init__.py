"""The explorer: a web page that reads a text with a run, shows its concepts, turns them, and compares runs.

`server` decides who gets in, `subject` holds what is shown and how much may be asked, and each view computes its page
from the parameters of its link alone: nothing is kept for a visitor. Views and `app` need Gradio.
"""

from cocomix.explorer.server import find_password, serve, serving
from cocomix.explorer.subject import Subject, open_subject

__all__ = ["Subject", "find_password", "open_subject", "serve", "serving"]
