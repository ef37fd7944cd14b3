"""The licences of what cocomix needs, as the installed packages state them: `make licences` writes LICENCES.md."""

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LIST = ROOT / "LICENCES.md"
HEAD = """# Licences of dependencies

cocomix itself is under the MIT licence. This list was made by `make licences` from the metadata of the installed
packages; what they need in turn comes after what cocomix names itself. CUDA builds of PyTorch add NVIDIA's packages,
under NVIDIA's terms.
"""


def main() -> None:
    """Write the list."""
    LIST.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole list as Markdown."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"Always": project["dependencies"]}
    groups |= {f"With `cocomix[{name}]`": needs for name, needs in project["optional-dependencies"].items()}
    parts, listed = [HEAD], {"cocomix"}
    for title, needs in groups.items():
        if title in ("With `cocomix[demo]`", "With `cocomix[dev]`"):  # made of the others; not needed to use cocomix
            continue
        rows = list(_rows(map(Requirement, needs), listed))
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {title}\n\n| package | version | licence | |\n|---|---|---|---|\n{table}\n")
    return "\n".join(parts)


def _rows(needs: Iterable[Requirement], listed: set[str]) -> Iterator[tuple[str, str, str, str]]:
    """(package, version, licence, how it is needed): first what is named, then what that needs, by name."""
    todo, direct, further = list(needs), [], {}
    named = {canonicalize_name(need.name) for need in todo}
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name in listed:
            continue
        listed.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            row = (need.name, "", "not installed where this list was made")
        else:
            row = (package.metadata["Name"], package.version.partition("+")[0], _licence(package))
            todo += _needs_of(package, need.extras)
        if name in named:
            direct.append((*row, "named"))
        else:
            further[name] = (*row, "")
    yield from sorted(direct, key=lambda row: row[0].lower())
    yield from (further[name] for name in sorted(further))


def _needs_of(package: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    for text in package.requires or ():
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield need


def _licence(package: Distribution) -> str:
    """An SPDX expression where there is one; else the classifiers, or the first line of the licence field."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [line.rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier", []) if "License ::" in line]
    names = [name for name in classifiers if name != "OSI Approved"]
    text = (metadata.get("License") or "").strip().splitlines()
    return (", ".join(names) or (text[0] if text else "not stated")).replace("|", "/")


if __name__ == "__main__":
    main()
