"""The `cocomix` command: a file per verb, named as the verb.

Importing a module adds its verb; `cocomix.cli.story` says in which order `--help` lists them.
"""

from cocomix.cli import (  # noqa: F401 - their verbs
    analyse,
    atlas,
    compare,
    consolidate,
    demo,
    distill,
    doctor,
    eval,
    explore,
    export,
    generate,
    import_,
    init,
    inspect,
    label,
    prepare,
    push,
    runs,
    sae,
    steer_eval,
    sweep,
    train,
    verify,
)
from cocomix.cli.application import app, main

__all__ = ["app", "main"]
