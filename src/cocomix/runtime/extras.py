"""Packages that only some work needs: looked for before the work begins, missed with the command that installs them."""

from importlib.util import find_spec

from cocomix.runtime.errors import CoCoMixError

__all__ = ["require_extra"]


def require_extra(extra: str, *packages: str, purpose: str) -> None:
    """Refuse work whose packages are not installed.

    Args:
        extra: which of cocomix's extras brings them.
        packages: names as they are imported.
        purpose: what needs them, e.g. `"a report"`.

    Raises:
        CoCoMixError: one of them is missing.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise CoCoMixError(f"{purpose} needs {' and '.join(missing)}; run: pip install 'cocomix[{extra}]'.")
