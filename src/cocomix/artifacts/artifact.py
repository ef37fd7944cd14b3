"""`Artifact`: a folder that is whole or absent, here or at a URL, with a manifest of what it is and was made from."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

from cocomix.artifacts.faults import AlreadyExists, Damaged, NotAnArtifact, OutsideFolder, WrongKind, WrongVersion
from cocomix.artifacts.files import inside, write_text
from cocomix.artifacts.findings import Findings
from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.manifests import MANIFEST, M, differing, manifest_kind, parse_manifest
from cocomix.artifacts.staging import THREADS, Staging, made_at, partial_path, publish, staged
from cocomix.artifacts.store import RemoteFolder, copy_place
from cocomix.artifacts.uploading import claimed
from cocomix.artifacts.urls import shown, url_of
from cocomix.artifacts.verified import VerifiedFiles
from cocomix.runtime.errors import CoCoMixError

__all__ = ["Artifact", "kind_class", "open_artifact"]

_KINDS: dict[str, type["Artifact[Any]"]] = {}
_OLD_MANIFESTS = ("meta.json", "fit.json", "atlas.json")
"""Files by which older versions of cocomix knew a folder."""


class Artifact(Generic[M]):
    """One folder that a command made.

    A subclass sets the class attributes, and may override `records`, `check` and `check_unfinished`.

    Attributes:
        kind: names it in manifests and messages.
        version: of the format; raised when older folders can no longer be read.
        manifest_type: the class of its manifest.
        made_by: the command that makes it, for messages.
        path: the folder on this machine; of a URL, its local copy, which may lack files: use `file`.
        manifest: what it is.
        url: where it came from; `None` for a folder.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 2
    manifest_type: ClassVar[type[Any]]
    made_by: ClassVar[str]

    def __init__(self, path: Path, manifest: M, url: str | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.url = url
        self._verified = VerifiedFiles(path)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    # ---- making ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, output: Path | str, *, identity: Mapping[str, Any], resume: bool = False, shared: bool = False
    ) -> AbstractContextManager[Staging[M]]:
        """Make an artefact: a context manager that gives a folder to write to, and whose `finish` makes it the output.

        A lock beside the output is held all the while. On an error nothing appears.

        Args:
            output: the folder, which must not exist or be empty; or its URL.
            identity: everything that determines the result, as JSON; kept in the manifest.
            resume: go on with what an interrupted command of the same identity left, and leave it again on an error.
            shared: as `resume`, and other processes that say so may write at the same time. Only one of them may
                finish (`Staging.alone`); leaving the block without is no error.

        Raises:
            BeingWritten: another process writes the same output.
            AlreadyExists: there is something.
            MadeFromSomethingElse: what was left is of another identity; the keys are named.
            CoCoMixError: nothing can be written there, or the disk is full.
        """
        return staged(output, cls.kind, cls.version, dict(identity), cls.records, resume=resume, shared=shared)

    @classmethod
    def made(cls, output: Path | str, identity: Mapping[str, Any]) -> Self | None:
        """The artefact at `output` if it is finished and of this identity; `None` if there is nothing.

        To be asked before anything heavy is loaded. An upload that was interrupted is made up for.

        Raises:
            AlreadyExists: something else is there; the settings that differ are named.
        """
        place, url = made_at(output), url_of(output)
        found: Self | None = None
        if url is not None:
            with suppress(NotAnArtifact):
                found = cls.open(url)
        if found is None and (place / MANIFEST).is_file():
            found = cls.open(place)
        if found is None:
            return None
        if keys := found.differing(identity):
            raise AlreadyExists(
                f"{shown(output)} already exists and was made with another {', '.join(keys)}; remove it or choose "
                "another --output.",
                keys,
            )
        if url is not None and found.url is None:
            found.push(url)
            return cls.open(url)
        return found

    @classmethod
    def records(cls, name: str) -> bool:
        """Whether the manifest lists the file of this POSIX name; not what later commands may add to or change."""
        return True

    # ---- reading -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a finished artefact; reads its manifest and nothing else.

        Raises:
            NotAnArtifact: there is none, or it is not finished.
            WrongKind: it is of another kind.
            WrongVersion: it is of another version.
            Damaged: its manifest is.
            Unreachable: the URL is.
        """
        content, where = _read_manifest(path, cls.made_by)
        manifest = parse_manifest(content, where, cls.kind, cls.version, cls.manifest_type)
        if (url := url_of(path)) is None:
            return cls(Path(path), manifest)
        place = copy_place(url, content)
        if not (place / MANIFEST).is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_text(place / MANIFEST, content.decode())
        return cls(place, manifest, url)

    def file(self, name: str) -> Path:
        """The path of a file on this machine. One at a URL is fetched first.

        Its size is looked at every time; it is hashed when it is first used on this machine, and again when it changed.

        Raises:
            Damaged: it is missing, or not the one that the manifest describes.
            Unreachable: it cannot be fetched.
        """
        path, entry = self._entry(name)
        if path.is_file() and self._verified.holds(name, path, entry.sha256):
            return path
        with self._verified.alone(name):
            if path.is_file() and self._verified.holds(name, path, entry.sha256):
                return path  # another process was at it
            fault = self._fault(name)
            if fault is not None and self.url is not None:
                RemoteFolder(self.url).download(name, path)
                fault = self._fault(name)
                if fault is not None:
                    path.unlink()
            if fault is not None:
                raise fault
            return path

    def _entry(self, name: str) -> tuple[Path, Any]:
        if name not in self.manifest.files:
            raise Damaged(f"{self.path / MANIFEST} lists no {name}; {self._repair}.", name)
        return inside(self.path, name), self.manifest.files[name]

    def _fault(self, name: str) -> CoCoMixError | None:
        """What is wrong with a file; hashes it."""
        where = f"{self.url or self.path}/{name}"
        try:
            path, entry = self._entry(name)
            size = path.stat().st_size
            if size != entry.size:
                return Damaged(f"{where} has {size:,} bytes instead of {entry.size:,}; {self._repair}.", name)
            if file_sha256(path) != entry.sha256:
                return Damaged(f"{where} has changed since it was written; {self._repair}.", name)
            self._verified.note(name, path, entry.sha256)
        except FileNotFoundError:
            return Damaged(f"{where} is missing; {self._repair}.", name)
        except OutsideFolder as error:
            return error
        except OSError as error:
            return Damaged(f"{where} cannot be read ({error.strerror}); {self._repair}.", name)
        return None

    @property
    def _repair(self) -> str:
        return f"restore it from a copy, or make the folder again with `{self.made_by}`"

    def differing(self, identity: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the settings in which `identity` differs from the one this was made with."""
        given = json.loads(json.dumps(dict(identity), allow_nan=False))
        return differing(self.manifest.identity, given)

    # ---- looking after -----------------------------------------------------------------------------------------------

    def verify(self) -> Findings:
        """Hash all files (in threads), compare the fingerprint, and check what the kind itself can tell.

        Reads everything, whatever was verified before.
        """
        findings = Findings()
        with ThreadPoolExecutor(THREADS) as threads:
            for name, fault in zip(self.manifest.files, threads.map(self._fault, self.manifest.files), strict=True):
                findings.note(name, "size and hash", fault)
        computed = self.manifest.computed_fingerprint()
        findings.equal("fingerprint", computed, self.manifest.fingerprint, "of everything it is made of", self._repair)
        self.check(findings)
        return findings

    def check(self, findings: Findings) -> None:
        """Note what this kind can check beyond its files: their content, and what it was made from where that is."""

    @classmethod
    def check_unfinished(cls, folder: Path, findings: Findings) -> None:
        """Note what can be checked of a staging folder that an interrupted command left."""
        findings.skip("the rest", "not finished; run the same command again to go on")

    def push(self, url: Path | str) -> str:
        """Copy this artefact from this machine to a URL (`cocomix push`), the manifest last.

        Returns:
            The URL.

        Raises:
            AlreadyExists: something is there.
            BeingWritten: another process writes there.
            Unreachable: the upload failed.
        """
        place = url_of(url)
        if place is None:
            raise CoCoMixError(f"{url} is no URL; give one such as s3://BUCKET/FOLDER, or copy the folder yourself.")
        for name in self.manifest.files:
            self.file(name)
        with claimed(place) as claim:
            if self.path == made_at(place):
                publish(self.path, claim)
            else:
                claim.publish(self.path)
        return place


def open_artifact(path: Path | str) -> Artifact[Any]:
    """Open an artefact of whichever kind, of those whose rooms are imported.

    Raises:
        NotAnArtifact: there is none, or it is not finished.
        WrongKind: it is of no kind that is known.
    """
    content, where = _read_manifest(path, "a cocomix command")
    kind, _ = manifest_kind(content, where)
    return kind_class(kind, where).open(path)


def kind_class(kind: str, where: str) -> type[Artifact[Any]]:
    """The class of a kind of artefact.

    Raises:
        WrongKind: it is of no kind that is known.
    """
    if kind not in _KINDS:
        raise WrongKind(f"{where} names a kind that this version of cocomix does not know: {kind!r}.")
    return _KINDS[kind]


def _read_manifest(path: Path | str, made_by: str) -> tuple[bytes, str]:
    """Content and full name of a folder's manifest."""
    url = url_of(path)
    where = f"{url or path}/{MANIFEST}"
    with suppress(FileNotFoundError, NotADirectoryError):
        return (Path(path) / MANIFEST).read_bytes() if url is None else RemoteFolder(url).read(MANIFEST), where
    if url is not None:
        there = RemoteFolder(url).files()
        if any(name in there for name in _OLD_MANIFESTS):
            raise WrongVersion(f"{url} is of an older version of cocomix; use `cocomix convert`, or make it again.")
        why = "is something else, or its upload was interrupted" if there else "does not exist"
        raise NotAnArtifact(f"{url} {why}; make it with `{made_by}`, or upload it with `cocomix push`.")
    folder = Path(path)
    if any((folder / name).is_file() for name in _OLD_MANIFESTS):
        raise WrongVersion(f"{folder} is of an older version of cocomix; use `cocomix convert`, or make it again.")
    if (not folder.exists() and partial_path(folder).is_dir()) or folder.name.endswith(".partial"):
        raise NotAnArtifact(f"{folder} is not finished; run the same `{made_by}` again to go on with it.")
    if not folder.exists():
        raise NotAnArtifact(f"{folder} does not exist; make it with `{made_by}`, or give another folder.")
    raise NotAnArtifact(f"{folder} has no {MANIFEST}: it is nothing that `{made_by}` wrote; give another folder.")
