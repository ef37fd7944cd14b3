"""The pages of the Python interface: for every room of the package, the names that its `__init__` exports."""

from importlib import import_module

__all__ = ["ROOMS", "api_pages"]

ROOMS = (
    "cocomix",
    "cocomix.runtime",
    "cocomix.artifacts",
    "cocomix.model",
    "cocomix.concepts",
    "cocomix.data",
    "cocomix.labelling",
    "cocomix.training",
    "cocomix.evaluation",
    "cocomix.interpret",
    "cocomix.interop",
    "cocomix.experiments",
    "cocomix.explorer",
)


def api_pages() -> dict[str, str]:
    """Markdown by room: mkdocstrings fills in what stands behind every `:::`."""
    return {room: _page(room) for room in ROOMS}


def _page(room: str) -> str:
    module = import_module(room)
    summary, _, rest = (module.__doc__ or "").partition("\n\n")
    names = [name for name in module.__all__ if not name.startswith("__")]
    blocks = [f"::: {room}.{name}" for name in names]
    return "\n\n".join([f"# {room}", " ".join(summary.split()), rest.strip(), *blocks, ""])
