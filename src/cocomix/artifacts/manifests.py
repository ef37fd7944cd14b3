"""`manifest.json`: what a folder is, what it was made from, and its files. There is no other reader of it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cocomix.artifacts.faults import Damaged, WrongKind, WrongVersion
from cocomix.artifacts.files import check_name
from cocomix.artifacts.hashing import fingerprint_json

__all__ = ["MANIFEST", "FileEntry", "Manifest", "differing", "manifest_kind", "parse_manifest"]

MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artefact: bytes and SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What every manifest says. Subclasses add fields; who makes one gives only those, `identity` and `made_from`.

    Attributes:
        kind: as of the `Artifact` class. Set by `Staging.finish`, as are the next three.
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


def manifest_kind(content: bytes, where: str) -> tuple[str, int]:
    """Kind and version that a manifest names.

    Raises:
        Damaged: it is not a JSON object.
        WrongVersion: it is of an older cocomix, whose manifests have `format_version`.
        WrongKind: it names none: another program's.
    """
    values = _values(content, where)
    if "format_version" in values:
        raise WrongVersion(f"{where} is of an older version of cocomix; use `cocomix convert`, or make it again.")
    kind, version = values.get("kind"), values.get("version")
    if not isinstance(kind, str) or not isinstance(version, int):
        raise WrongKind(f"{where} is not a manifest of cocomix: it names no kind and version.")
    return kind, version


def parse_manifest(content: bytes, where: str, kind: str, version: int, manifest_type: type[M]) -> M:
    """Read a manifest.

    Args:
        content: of the file.
        where: its path or URL, for messages.
        kind: expected.
        version: expected.
        manifest_type: its model.

    Raises:
        WrongKind: it is of another kind.
        WrongVersion: it is of another version.
        Damaged: it is not what this version writes (the field is named).
    """
    found, found_version = manifest_kind(content, where)
    folder = where.removesuffix(f"/{MANIFEST}")
    if found != kind:
        raise WrongKind(f"{folder} holds {found}, not {kind}; give another folder.")
    if found_version != version:
        raise WrongVersion(
            f"{folder} holds {kind} of format {found_version}, and this version of cocomix reads format {version}; "
            "use `cocomix convert`, or make it again."
        )
    values = _values(content, where)
    missing = [name for name in Manifest.model_fields if name not in values]
    if missing:
        raise Damaged(f"{where} is damaged: it has no {missing[0]}; make the folder again.", MANIFEST)
    try:
        return manifest_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{where} is damaged ({place}: {first['msg']}); make the folder again.", MANIFEST) from error


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


def _values(content: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is not valid JSON ({error}); make the folder again.", MANIFEST) from error
    if not isinstance(values, dict):
        raise Damaged(f"{where} is not a JSON object; make the folder again.", MANIFEST)
    return values
