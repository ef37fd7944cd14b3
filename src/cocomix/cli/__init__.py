"""The `cocomix` command: one thin function per verb, in the modules of this package.

Importing a module adds its verbs; `cocomix.cli.story` says in which order `--help` lists them.
"""

from cocomix.cli import (  # noqa: F401 - their verbs
    atlas,
    begin,
    care,
    corpus,
    explore,
    export,
    interchange,
    runs,
    runs_list,
    study,
    sweep,
    tour,
)
from cocomix.cli.application import app, main

__all__ = ["app", "main"]
