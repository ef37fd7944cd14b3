"""What installing a library adds to what this package needs anyway: distributions and megabytes."""

from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

__all__ = ["dependencies"]

_ROOTS = {
    "mosaicml-streaming": ("mosaicml-streaming",),
    "litdata": ("litdata",),
    "datasets": ("datasets",),
    "datasets with loader workers": ("datasets", "torchdata"),
}


def dependencies(work: Path, names: list[str]) -> dict[str, Any]:
    """Count what is added to cocomix[remote] in this environment, and what the library's metadata does not allow."""
    base = _closure(("cocomix", "s3fs"))
    found = {}
    for name, roots in _ROOTS.items():
        added = sorted(_closure(roots) - base)
        found[name] = {
            "added": added,
            "count": len(added),
            "megabytes": round(sum(_bytes(each) for each in added) / 1e6, 1),
            "of them torchvision": round(_bytes("torchvision") / 1e6, 1) if "torchvision" in added else 0.0,
            "not allowed beside cocomix": _conflicts(roots),
        }
    return found


def _closure(roots: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return found


def _conflicts(roots: tuple[str, ...]) -> list[str]:
    ours = {need.name: need for need in map(Requirement, requires("cocomix") or []) if need.marker is None}
    told = []
    for root in roots:
        for need in map(Requirement, requires(root) or []):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                installed = distribution(need.name).version
            except PackageNotFoundError:
                continue
            if not need.specifier.contains(installed, prereleases=True):
                wanted = f"; cocomix wants {ours[need.name]}" if need.name in ours else ""
                told.append(f"{root} wants {need}; {installed} is here{wanted}")
    return told


def _bytes(name: str) -> int:
    return sum(file.size or 0 for file in distribution(name).files or [])
