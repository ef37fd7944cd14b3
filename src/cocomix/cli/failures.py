"""How an error of a verb is told: one sentence on standard error, and an exit status, by the type of the error."""

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import first_to_fail
from cocomix.runtime.stopping import STATUS, Terminated


def exit_after(error: BaseException, *, verbose: bool = False) -> NoReturn:
    """End the process: a person's mistake or wish in a sentence, a mistake of ours in its traceback.

    The error's notes (`add_note`) say what was kept of the work; `verbose` shows where a person's mistake was noticed.
    """
    told = _sentence(error)
    if told is None:
        if isinstance(error, Exception) and not first_to_fail():
            sys.exit(1)  # this process lost another one, which has said why
        raise error
    sentence, status = told
    if first_to_fail():
        if verbose and isinstance(error, Exception):
            traceback.print_exception(error)
        from rich.console import Console
        from rich.text import Text

        whole = "; ".join([sentence.removesuffix("."), *getattr(error, "__notes__", ())]) + "."
        Console(stderr=True).print(Text.assemble(("error:", "red"), " ", whole), highlight=False, soft_wrap=True)
    sys.exit(status)


def _sentence(error: BaseException) -> tuple[str, int] | None:
    """What to say, and the exit status; None for what is not a person's doing."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", 130
    if isinstance(error, Terminated):
        return "stopped by SIGTERM", STATUS
    if isinstance(error, CoCoMixError):
        return str(error), 1
    if isinstance(error, OSError):
        where = error.filename or "the output folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"cannot write {where}: {error.strerror}; make room or choose another --output, and run again", 1
        if error.errno == errno.EACCES and Path(where).exists() and not os.access(where, os.R_OK):
            return f"cannot read {where}: {error.strerror}; ask its owner for access, or give another", 1
        if error.errno in (errno.EROFS, errno.EACCES):
            return f"cannot write {where}: {error.strerror}; choose another --output", 1
    if isinstance(error, ValueError):
        from pydantic import ValidationError

        from cocomix.runtime.section import describe_validation_error

        if isinstance(error, ValidationError):
            return describe_validation_error(error), 1
    return None
