"""The error a user can do something about."""

__all__ = ["CoCoMixError"]


class CoCoMixError(ValueError):
    """A mistake in what the user gave: an argument, a file, a recipe.

    The message is one sentence that says what was wrong, where, and what to do. The command line prints it without a
    traceback and exits with status 1; library callers may catch it as a `ValueError`.
    """
