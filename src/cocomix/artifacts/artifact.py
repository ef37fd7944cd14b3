"""`Artifact`: a folder that is whole or absent, here or at a URL, with a manifest of what it is and was made from."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

from cocomix.artifacts.faults import AlreadyExists, Damaged, NotAnArtifact, WrongKind, WrongVersion, unreadable
from cocomix.artifacts.file_cache import FileCache
from cocomix.artifacts.files import file_sha256, inside, read_json, write_text
from cocomix.artifacts.findings import Findings
from cocomix.artifacts.lock import refuse_writer
from cocomix.artifacts.manifests import MANIFEST, FileEntry, M, ManifestFile, as_json, differing
from cocomix.artifacts.staging import PLAN, THREADS, Claim, Staging, begin, check_plan, made_at, partial_path, staged
from cocomix.artifacts.store import NotThere, RemoteFolder, VerifiedFiles, cache_folder, copy_place, shown, url_of
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import is_first_process

_KINDS: dict[str, type["Artifact[Any]"]] = {}


class Artifact(Generic[M]):
    """One folder that a command made.

    A subclass sets the class attributes, and may override `records`, `check` and `check_unfinished`.

    Attributes:
        kind: names it in manifests and messages.
        version: of the format; raised when older folders can no longer be read.
        made_by: the command that makes it, for messages.
        path: the folder on this machine; of a URL, its local copy, which may lack files: use `file`.
        url: where it came from; `None` for a folder.
        caches: of files that are kept elsewhere, by their names; see `keep_in`.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 2
    manifest_type: ClassVar[type[Any]]
    made_by: ClassVar[str]

    def __init__(self, path: Path, manifest: M, url: str | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.url = url
        self.caches: dict[str, FileCache] = {}
        self._verified = VerifiedFiles(path)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @classmethod
    @contextmanager
    def create(
        cls,
        output: Path | str,
        *,
        identity: Mapping[str, Any],
        resume: bool = False,
        shared: bool = False,
        any_identity: bool = False,
    ) -> Iterator[Staging[M]]:
        """Make an artefact: gives a folder to write to, which `Staging.finish` makes the output.

        A lock beside the output is held all the while. On an error nothing appears.

        Args:
            output: the folder, which must not exist or be empty; or its URL.
            identity: everything that determines the result, as JSON; kept in the manifest.
            resume: go on with what an interrupted command of the same identity left, and leave it again on an error.
            shared: as `resume`, and other processes that say so may write at the same time. Only one of them may
                finish (`Staging.alone`); leaving the block without is no error.
            any_identity: go on also with what was begun with another identity: whoever writes there names each part by
                what determines it, and so knows what still counts.

        Raises:
            BeingWritten: another process writes the same output.
            AlreadyExists: there is something.
            MadeFromSomethingElse: what was left is of another identity; the keys are named.
            CoCoMixError: nothing can be written there, or the disk is full.
        """
        about, identity = {"kind": cls.kind, "version": cls.version}, as_json(identity)
        kept = resume or shared
        with staged(output, {**about, "identity": identity}, cls.records, kept=kept, shared=shared) as staging:
            if kept:
                begin(staging.path, about, None if any_identity else identity)
            yield staging

    @classmethod
    def made(cls, output: Path | str, identity: Mapping[str, Any]) -> Self | None:
        """The artefact at `output` if it is finished and of this identity; `None` if it has to be made.

        To be asked before anything heavy is loaded. An upload that was interrupted is made up for.

        Args:
            identity: as for `create`, or as much of it as is known; other keys are not compared.

        Raises:
            BeingWritten: another process makes it.
            AlreadyExists: something else is there; the settings that differ are named.
            MadeFromSomethingElse: what an interrupted command left there is of another identity.
        """
        place, url = made_at(output), url_of(output)
        if is_first_process():  # of several that make it together the first holds the lock
            refuse_writer(made_at(output, ".lock"), shown(output))
        found: Self | None = None
        if url is not None:
            with suppress(NotAnArtifact):
                found = cls.open(url)
        if found is None and (place / MANIFEST).is_file():
            found = cls.open(place)
        if found is None:
            check_plan(partial_path(output), identity)
            return None
        if keys := found.differing(identity):
            made = f"{shown(output)} already exists and was made with another {', '.join(keys)}"
            raise AlreadyExists(f"{made}; remove it or choose another --output.", keys)
        if url is not None and found.url is None:
            found.push(url)
            return cls.open(url)
        return found

    @classmethod
    def records(cls, name: str) -> bool:
        """Whether the manifest lists the file of this POSIX name; not what later commands may add to or change."""
        return True

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a finished artefact; reads its manifest and nothing else.

        Raises `NotAnArtifact` where there is none or it is unfinished, `WrongKind`, `WrongVersion`, `Damaged` where its
        manifest is, and `Unreachable` where the URL is.
        """
        file = _manifest_file(path, cls.made_by)
        manifest = file.parse(cls.kind, cls.version, cls.manifest_type)
        if (url := url_of(path)) is None:
            return cls(Path(path), manifest)
        place = copy_place(url, file.content)
        if not (place / MANIFEST).is_file():
            place.mkdir(parents=True, exist_ok=True)
            write_text(place / MANIFEST, file.content.decode())
        return cls(place, manifest, url)

    def file(self, name: str) -> Path:
        """The path of a file on this machine. One at a URL is fetched first.

        Its size is looked at every time; it is hashed when it is first used on this machine, and again when it changed.
        Raises `Damaged` where it is missing or not the one that the manifest describes, `Unreachable` as `fetch`.
        """
        if self.url is not None and name in self.caches:
            return self.caches[name].file(self.url, name, self.entry(name))
        path, sha256 = inside(self.path, name), self.entry(name).sha256
        if self._verified.holds(path, sha256):
            return path
        with self._verified.alone(name):  # meanwhile another process may have fetched or hashed it
            if not self._verified.holds(path, sha256):
                try:
                    self._hash(name)
                except Damaged:
                    if self.url is None:
                        raise
                    RemoteFolder(self.url).download(name, path, self.manifest.files[name].size)
                    self._hash(name)
        return path

    def entry(self, name: str) -> FileEntry:
        """Size and hash of a file; `Damaged` where the manifest does not list it."""
        if name not in self.manifest.files:
            raise Damaged(f"{self.path / MANIFEST} lists no {name}; {self._repair}.", name)
        return self.manifest.files[name]

    def fetch(self, *, later: Collection[str] = ()) -> None:
        """Have every file on this machine before long work begins: fetch those of a URL, look at the sizes of others.

        Files of a URL that are named in `later` are not fetched yet. Raises `Damaged` where a file is missing or has
        another size, `Unreachable` where it cannot be fetched.
        """
        for name in self.manifest.files:
            if self.url is None:
                if (fault := self._size_fault(name)) is not None:
                    raise self._damaged(name, fault)
            elif name not in later:
                self.file(name)

    def keep_in(self, cache: FileCache, names: Iterable[str]) -> None:
        """Keep the files of these names in a cache of bounded size, from which they may vanish, if this is at a URL."""
        if self.url is not None:
            self.caches = dict.fromkeys(names, cache)

    def _hash(self, name: str) -> None:
        """Hash a file, and note that it is right; one of a local copy that is not is removed."""
        path, sha256 = inside(self.path, name), self.manifest.files[name].sha256
        try:
            fault = self._size_fault(name)
            if fault is None and file_sha256(path) == sha256:
                self._verified.note(path, sha256)
                return
        except OSError as error:
            raise unreadable(path, error) from error
        if self.url is not None:
            path.unlink(missing_ok=True)
        raise self._damaged(name, fault or "has changed since it was written")

    def _size_fault(self, name: str) -> str | None:
        path, wanted = inside(self.path, name), self.manifest.files[name].size
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        return None if size == wanted else f"has {size:,} bytes instead of {wanted:,}"

    def _damaged(self, name: str, fault: str) -> Damaged:
        return Damaged(f"{self.url or self.path}/{name} {fault}; {self._repair}.", name)

    @property
    def _repair(self) -> str:
        return f"restore it from a copy, or make the folder again with `{self.made_by}`"

    def differing(self, identity: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the settings in which `identity` differs from the one this was made with, among those it has."""
        return differing(self.manifest.identity, as_json(identity))

    def verify(self) -> Findings:
        """Hash all files, compare the fingerprint, and check what the kind itself can tell.

        Reads everything, whatever was verified before; of a URL, what is there now.
        """
        if self.url is not None:
            return self._verify_remote(self.url)
        findings, files = Findings(str(self.path), self.kind, self.version), self.manifest.files

        def hashed(name: str) -> int:
            with findings.check(name, "size and hash", self._repair):
                self._hash(name)
            return files[name].size

        size = sum(entry.size for entry in files.values())
        with progress(f"verify {self.kind}", size, "bytes") as advance, ThreadPoolExecutor(THREADS) as threads:
            for done in threads.map(hashed, files):
                advance(done)
        findings.found.sort(key=lambda finding: finding.what)
        with findings.check("fingerprint", "of everything it is made of", self._repair):
            if self.manifest.computed_fingerprint() != self.manifest.fingerprint:
                raise Damaged(f"{self.path / MANIFEST} was changed after it was written; {self._repair}.", MANIFEST)
        self.check(findings)
        return findings

    def _verify_remote(self, url: str) -> Findings:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="verify-") as place:
            folder = Path(place) / url.rsplit("/", 1)[1]
            for name in (MANIFEST, *self.manifest.files):
                with suppress(CoCoMixError):  # what is missing there is found missing here
                    RemoteFolder(url).download(name, inside(folder, name))
            findings = self.open(folder).verify()
            found = [replace(finding, detail=finding.detail.replace(str(folder), url)) for finding in findings.found]
        return replace(findings, path=url, found=found)

    def check(self, findings: Findings) -> None:
        """Note what this kind can check beyond its files: their content, and what it was made from where that is."""

    @classmethod
    def check_unfinished(cls, folder: Path, findings: Findings) -> None:
        """Note what can be checked of a staging folder that an interrupted command left."""

    def push(self, url: Path | str) -> str:
        """Copy this artefact from this machine to a URL (`cocomix push`), which is returned, the manifest last.

        Raises `AlreadyExists`, `BeingWritten` where another process writes there, `Unreachable` where it failed.
        """
        place = url_of(url)
        if place is None:
            raise CoCoMixError(f"{url} is no URL; give one such as s3://BUCKET/FOLDER, or copy the folder yourself.")
        for name in self.manifest.files:
            self.file(name)
        with closing(Claim(place)) as claim:
            (claim.publish_made if self.path == made_at(place) else claim.publish)(self.path)
        return place


def open_artifact(path: Path | str) -> Artifact[Any]:
    """Open an artefact of whichever kind, of those whose rooms are imported; errors are those of `Artifact.open`."""
    return _kind(_manifest_file(path, "cocomix VERB").kind, path).open(path)


def verify(path: Path | str) -> Findings:
    """Check an artefact (see `Artifact.verify`), or what an interrupted command left of one.

    Raises `NotAnArtifact` or `WrongKind` where there is nothing that cocomix writes.
    """
    if url_of(path) is not None or not (Path(path) / PLAN).is_file():
        return open_artifact(path).verify()
    plan = read_json(Path(path) / PLAN)
    kind = _kind(str(plan.get("kind")), path)
    findings = Findings(str(path), f"unfinished {kind.kind}", kind.version)
    kind.check_unfinished(Path(path), findings)
    findings.skip("the rest", f"not finished; run the same `{kind.made_by}` again to go on")
    return findings


def _kind(kind: str, path: Path | str) -> type[Artifact[Any]]:
    if kind not in _KINDS:
        raise WrongKind(
            f"{shown(path)} holds {kind!r}, which this version of cocomix does not know; use the version that wrote it."
        )
    return _KINDS[kind]


def _manifest_file(path: Path | str, made_by: str) -> ManifestFile:
    url, folder = url_of(path), Path(path)
    with suppress(FileNotFoundError, NotADirectoryError, NotThere):
        content = (folder / MANIFEST).read_bytes() if url is None else RemoteFolder(url).read(MANIFEST)
        return ManifestFile(content, url or str(folder))
    there = set(RemoteFolder(url).files()) if url is not None else {file.name for file in folder.glob("*")}
    if there & {"meta.json", "fit.json", "atlas.json"}:
        raise WrongVersion(f"{shown(path)} is of an older cocomix: make it again, or use that version.")
    if folder.name.endswith(".partial") or (not there and partial_path(path).is_dir()):
        raise NotAnArtifact(f"{shown(path)} is not finished; run the same `{made_by}` again to go on with it.")
    if there or (url is None and folder.exists()):
        what = "nothing that cocomix wrote" if url is None else "something else, or its upload was interrupted"
        raise NotAnArtifact(f"{shown(path)} has no {MANIFEST}: it is {what}; give another one.")
    raise NotAnArtifact(f"{shown(path)} does not exist; make it with `{made_by}`, or give another folder.")
