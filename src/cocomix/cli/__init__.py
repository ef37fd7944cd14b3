"""The `cocomix` command: one thin function per verb, in the modules of this package.

Importing a module adds its verbs; `--help` lists them in this order.
"""

# isort: off
from cocomix.cli.application import app, main
from cocomix.cli import corpus, runs, sweep, study, atlas, explore, care, tour  # noqa: F401 - their verbs
# isort: on

__all__ = ["app", "main"]
