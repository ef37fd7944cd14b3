"""The `cocomix` command: a file per verb, named as the verb. Nothing heavy is imported before a verb runs."""

from cocomix.cli.application import app, main

__all__ = ["app", "main"]
