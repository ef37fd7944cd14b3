"""`manifest.json`: what a folder is, what it was made from, and its files. There is no other reader of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cocomix.artifacts.faults import Damaged, WrongKind, WrongVersion
from cocomix.artifacts.files import check_name
from cocomix.artifacts.hashing import file_sha256, fingerprint_json

__all__ = ["MANIFEST", "FileEntry", "Manifest", "ManifestFile", "differing", "file_entry"]

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artefact: bytes and SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(size=path.stat().st_size, sha256=file_sha256(path))


class Manifest(BaseModel):
    """What every manifest says. Subclasses add fields; who makes one gives only those and `made_from`.

    Attributes:
        kind: as of the `Artifact` class. Set by `Staging.finish`, as are the other fields but `made_from`.
        version: of the format.
        cocomix_version: that wrote it.
        fingerprint: SHA-256 over `contents()`.
        identity: everything that determines the result, as it was given to `Artifact.create`.
        made_from: role (`tokens`, `tokenizer`, `teacher`, …) → fingerprint.
        files: every file but the manifest by its POSIX name; entries given to `Staging.finish` are not hashed again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""
    version: int = 0
    cocomix_version: str = ""
    fingerprint: str = ""
    identity: dict[str, Any] = {}
    made_from: dict[str, str] = {}
    files: dict[Annotated[str, AfterValidator(check_name)], FileEntry] = {}

    def contents(self) -> Any:
        """What the fingerprint is taken over, as JSON: by default the content of all files and what they are from."""
        files = {name: entry.sha256 for name, entry in self.files.items()}
        return {"kind": self.kind, "made_from": self.made_from, "files": files}

    def computed_fingerprint(self) -> str:
        """The fingerprint that `contents()` have."""
        return fingerprint_json(self.contents())


M = TypeVar("M", bound=Manifest)


class ManifestFile(NamedTuple):
    """A `manifest.json` as it was found: its bytes, and the folder or URL, for messages."""

    content: bytes
    folder: str

    def kind(self) -> tuple[str, int]:
        """Kind and version that it names.

        Raises:
            Damaged: it is not a JSON object.
            WrongKind: it names none: another program's.
            WrongVersion: it is of an older cocomix, whose manifests have `format_version`.
        """
        values = self._values()
        if "format_version" in values:
            raise WrongVersion(f"{self.folder} is of an older cocomix: make it again, or use that version.")
        kind, version = values.get("kind"), values.get("version")
        if not isinstance(kind, str) or not isinstance(version, int):
            raise WrongKind(f"{self.folder}/{MANIFEST} is not of cocomix: it names no kind and version.")
        return kind, version

    def parse(self, kind: str, version: int, manifest_type: type[M]) -> M:
        """Read it as a manifest of some kind and version.

        Raises:
            WrongKind: it is of another kind.
            WrongVersion: it is of another version.
            Damaged: it is not what this version writes (the field is named).
        """
        found, found_version = self.kind()
        if found != kind:
            raise WrongKind(f"{self.folder} holds {found}, not {kind}; give another folder.")
        if found_version != version:
            raise WrongVersion(
                f"{self.folder} holds {kind} of format {found_version}, and this version of cocomix reads format "
                f"{version}; make it again, or use the version that wrote it."
            )
        values = self._values()
        for name in Manifest.model_fields:
            if name not in values:
                raise self._damaged(f"it has no {name}")
        try:
            return manifest_type.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _values(self) -> dict[str, Any]:
        try:
            values = json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"not JSON: {error}") from error
        if not isinstance(values, dict):
            raise self._damaged("not a JSON object")
        return values

    def _damaged(self, reason: str) -> Damaged:
        return Damaged(f"{self.folder}/{MANIFEST} is damaged ({reason}); make the folder again.", MANIFEST)


def differing(found: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys, those of nested objects joined by dots, in which two JSON objects differ."""
    names: list[str] = []
    for key in sorted({*found, *given}):
        one, other = found.get(key), given.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += [f"{key}.{name}" for name in differing(one, other)]
        elif one != other:
            names.append(key)
    return tuple(names)
