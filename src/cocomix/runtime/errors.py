"""The error a user can do something about, and the one of a package that is missing."""

from importlib.util import find_spec


class CoCoMixError(ValueError):
    """A mistake in what the user gave: an argument, a file, a recipe.

    The message is one sentence that says what was wrong, where, and what to do. The command line prints it without a
    traceback and exits with status 1; library callers may catch it as a `ValueError`.
    """


def require_extra(extra: str, *packages: str, purpose: str) -> None:
    """Refuse work, named by its `purpose` ("a report"), whose `packages` are not installed; the extra brings them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise CoCoMixError(f"{purpose} needs {' and '.join(missing)}; run: pip install 'cocomix[{extra}]'.")
