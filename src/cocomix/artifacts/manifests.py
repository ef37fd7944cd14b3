"""`manifest.json`: what a folder is, what it was made from, and its files. There is no other reader of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from cocomix.artifacts.faults import Damaged, WrongKind, WrongVersion
from cocomix.artifacts.files import check_name, file_sha256, fingerprint_json
from cocomix.runtime.section import Record

MANIFEST = "manifest.json"


class FileEntry(Record):
    """One file of an artefact: bytes and SHA-256 (hex)."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(size=path.stat().st_size, sha256=file_sha256(path))


class Manifest(Record):
    """What every manifest says. Subclasses add fields; who makes one gives only those and `made_from`."""

    kind: str = ""
    """As of the `Artifact` class. Set by `Staging.finish`, as are the other fields but `made_from`."""
    version: int = 0
    cocomix_version: str = ""
    """That wrote it."""
    fingerprint: str = ""
    """SHA-256 over `contents()`."""
    identity: dict[str, Any] = Field(default_factory=dict)
    """Everything that determines the result, as it was given to `Artifact.create`."""
    made_from: dict[str, str] = Field(default_factory=dict)
    """Role (`tokens`, `tokenizer`, `teacher`, …) → fingerprint."""
    files: dict[Annotated[str, AfterValidator(check_name)], FileEntry] = Field(default_factory=dict)
    """Every file but the manifest by its POSIX name; entries given to `Staging.finish` are not hashed again."""

    def contents(self) -> Any:
        """What the fingerprint is taken over, as JSON: by default the content of all files and what they are from."""
        files = {name: entry.sha256 for name, entry in self.files.items()}
        return {"kind": self.kind, "made_from": self.made_from, "files": files}

    def computed_fingerprint(self) -> str:
        """The fingerprint that `contents()` have."""
        return fingerprint_json(self.contents())


M = TypeVar("M", bound=Manifest)


class ManifestFile:
    """A `manifest.json` as it was found; refused where it is no JSON object, or another program's (`WrongKind`)."""

    def __init__(self, content: bytes, folder: str) -> None:
        self.content = content
        self._folder = folder
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"not JSON: {error}") from error
        if not isinstance(values, dict):
            raise self._damaged("not a JSON object")
        if "format_version" in values:  # as older ones have
            raise WrongVersion(f"{folder} is of an older cocomix: make it again, or use that version.")
        kind = values.get("kind")
        if not isinstance(kind, str) or not isinstance(values.get("version"), int):
            raise WrongKind(f"{folder}/{MANIFEST} names no kind and version; give a folder that cocomix wrote.")
        self.kind, self._values = kind, values

    def parse(self, kind: str, version: int, manifest_type: type[M]) -> M:
        """Read it as a manifest of some kind and version."""
        found = self._values["version"]
        if self.kind != kind:
            raise WrongKind(f"{self._folder} is of the kind {self.kind}, not {kind}; give another folder.")
        if found != version:
            raise WrongVersion(
                f"{self._folder} ({kind}) has format {found}, and this version of cocomix reads format {version}; "
                "make it again, or use the version that wrote it."
            )
        for name in Manifest.model_fields:
            if name not in self._values:
                raise self._damaged(f"it has no {name}")
        try:
            return manifest_type.model_validate(self._values)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(f"{self._folder}/{MANIFEST} is damaged ({reason}); make the folder again.", MANIFEST)


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it is read back: tuples are lists in JSON."""
    values: dict[str, Any] = json.loads(json.dumps(dict(identity), allow_nan=False))
    return values


def differing(found: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of `given`, those of nested objects joined by dots, whose values differ in `found`."""
    names: list[str] = []
    for key in sorted(given):
        one, other = found.get(key), given[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += [f"{key}.{name}" for name in differing(one, {**dict.fromkeys(one), **other})]
        elif one != other:
            names.append(key)
    return tuple(names)
