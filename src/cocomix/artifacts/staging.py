"""Outputs appear whole or not at all: made in a folder beside the output, flushed to the disk, and renamed.

Beside `NAME` lie, while it is made, `NAME.lock` (see `lock`) and the staging folder: `NAME.partial` where an
interrupted command can go on, else `NAME.partial-` and random digits. What is made for a URL is made in the cache and
uploaded, its manifest last; meanwhile a marker at the URL says who writes.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

from cocomix.artifacts.faults import AlreadyExists, BeingWritten, MadeFromSomethingElse, Unreachable
from cocomix.artifacts.files import explained_full_disk, file_names, flush, flush_folder, read_json, write_json
from cocomix.artifacts.lock import being_written, locked, process_lives, this_process
from cocomix.artifacts.manifests import MANIFEST, M, as_json, differing, file_entry
from cocomix.artifacts.store import NotThere, RemoteFolder, cache_place, copy_place, require_local, shown, url_of
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import Terminated

PLAN = "plan.json"
"""Within a staging folder that can be gone on with: the kind and the identity of what is made."""
THREADS = min(8, os.cpu_count() or 1)  # that hash files; hashlib lets other threads run meanwhile
MARKER = ".cocomix-upload"
"""At a URL, while something is made for it: JSON, the process that makes it and a token of its own."""


class Claim:
    """The right to write to a URL, as far as object stores can give one; `close` gives it back.

    S3, GCS and memory create a file only where there is none in one step. On other stores two writers may both believe
    so for a moment; then the one whose marker was overwritten is refused before it uploads anything. Raises
    `BeingWritten` where another process has claimed the URL, `AlreadyExists` where something is there.
    """

    def __init__(self, url: str) -> None:
        self.remote = RemoteFolder(url)
        self._marker = json.dumps({**this_process(), "token": uuid.uuid4().hex}).encode()
        there = self.remote.files()
        if MANIFEST in there or (there and MARKER not in there):
            raise AlreadyExists(f"{url} already exists; remove it or choose another --output.")
        if not self.remote.create(MARKER, self._marker) and not process_lives(self._found()):
            self.remote.write(MARKER, self._marker)  # its process was killed
        self.check()

    def check(self) -> None:
        """Refuse to go on if another process writes there (the marker is not ours), or has (there is a manifest)."""
        url, found = self.remote.url, self._found()
        if found != self._marker:
            remedy = f"choose another --output, or remove {url}/{MARKER} if that process is no more"
            raise being_written(url, found, remedy)
        if MANIFEST in self.remote.files():
            raise AlreadyExists(f"{url} was written by another process meanwhile; choose another --output.")

    def publish(self, folder: Path) -> None:
        """Upload a finished folder; refused as by `check` if another process was faster."""
        self.check()
        sizes = {name: (folder / name).stat().st_size for name in file_names(folder) if name != MANIFEST}
        with progress("upload", sum(sizes.values()), "bytes") as advance:
            for name, size in sizes.items():
                self.remote.upload(name, folder / name)
                advance(size)
        self.check()
        there = self.remote.files()
        for name, size in sizes.items():
            if there.get(name) != size:
                raise Unreachable(f"{self.remote.url}/{name} did not arrive whole; upload it again.")
        manifest = (folder / MANIFEST).read_bytes()
        if not self.remote.create(MANIFEST, manifest) and self.remote.read(MANIFEST) != manifest:
            self.check()

    def publish_made(self, folder: Path) -> None:
        """Upload a folder that was made in the cache, and keep it there as the local copy; if that fails, as it is."""
        url = self.remote.url
        try:
            self.publish(folder)
        except Unreachable as error:
            raise Unreachable(
                f"{str(error).rstrip('.')}; the output is whole in {folder}: run the same command again, or `cocomix "
                f"push {folder} {url}`, to upload it."
            ) from error
        copy = copy_place(url, (folder / MANIFEST).read_bytes())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        folder.rename(copy)

    def close(self) -> None:
        """Remove the marker, if it is ours."""
        if self._found() == self._marker:
            self.remote.remove(MARKER)

    def _found(self) -> bytes:
        try:
            return self.remote.read(MARKER)
        except NotThere:
            return b""


def made_at(output: Path | str, suffix: str = "") -> Path:
    """Where an output is made on this machine, itself or a place in the cache; with a suffix, that name beside it."""
    url = url_of(output)
    place = Path(output) if url is None else cache_place(url, "outgoing")
    if suffix and place.name in ("", ".."):  # `.` and `..` have no name of their own
        place = place.resolve()
    return place.with_name(place.name + suffix) if suffix else place


def partial_path(output: Path | str) -> Path:
    """The staging folder of an output that can be gone on with, `NAME.partial`; of a URL it is in the cache."""
    return made_at(output, ".partial")


@dataclass
class Staging(Generic[M]):
    """An output while it is made."""

    path: Path
    """The folder to write files to, in any subfolders."""
    output: Path
    """What it becomes."""
    _about: Mapping[str, Any]
    _records: Callable[[str], bool]
    _claim: Claim | None
    finished: bool = False
    """Whether it did."""

    def finish(self, manifest: M, scratch: Sequence[str] = ()) -> M:
        """Hash the files, write the manifest, flush all to the disk, rename the folder, upload it if `output` is a URL.

        The manifest is given the fields of its kind, and `made_from`; the rest is filled in, and what is written
        returned. `scratch` names files and folders that only serve to go on after an interruption; they are removed
        when the folder is renamed, so that a command killed before loses nothing.
        """
        scratch = (PLAN, *scratch)
        half_written = [name for name in file_names(self.path, scratch) if fnmatch(Path(name).name, ".*.tmp")]
        _remove([self.path / name for name in half_written])  # by killed processes
        written = seal(self.path, manifest.model_copy(update=self._about), self._records, scratch)
        self._put_in_place(scratch)
        return written

    def _put_in_place(self, scratch: Sequence[str] = ()) -> None:
        place = made_at(self.output)
        if place.exists():
            place.rmdir()
        self.path.rename(place)
        _remove([place / name for name in scratch])
        flush(place.parent)
        if self._claim is not None:
            self._claim.publish_made(place)
        self.finished = True

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Let one of the jobs that share the folder finish it; yields whether this one may: no other is, or has."""
        try:
            with locked(made_at(self.output, ".finishing.lock"), shown(self.output)):
                yield self.path.is_dir()
        except BeingWritten:
            yield False


@contextmanager
def staged(
    output: Path | str,
    about: Mapping[str, Any],
    records: Callable[[str], bool] = lambda name: True,
    *,
    kept: bool = False,
    shared: bool = False,
) -> Iterator[Staging[Any]]:
    """Lock an output and give a staging folder for it; see `Artifact.create` for `shared` and the errors.

    `about` holds the manifest's kind, version and identity; `records` says by its name whether that lists a file. With
    `kept`, what an interrupted command left is taken, and left again on an error.
    """
    place, url = made_at(output), url_of(output)
    folder = made_at(output, ".partial" if kept else f".partial-{uuid.uuid4().hex[:8]}")
    with ExitStack() as held:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(made_at(output, ".lock"), shown(output), shared=shared))
            _refuse_existing(output, place, about["identity"])
            if not kept:  # what killed processes left: the lock is ours
                _remove(list(place.parent.glob(glob.escape(made_at(output, ".partial-").name) + "*")))
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CoCoMixError(f"cannot write to {place.parent}: {error.strerror}; choose another --output.") from error
        try:
            claim = None if url is None else held.enter_context(closing(Claim(url)))
            staging = Staging[Any](folder, Path(output), about, records, claim)
            with explained_full_disk(folder):
                yield staging
            if not (staging.finished or shared):
                raise RuntimeError(f"the output {output} was left without finish()")
        except (KeyboardInterrupt, Terminated) as error:
            if kept and not getattr(error, "__notes__", ()):  # else the kind has said more
                error.add_note(f"what is finished is kept in {folder}, and the same command goes on from there")
            raise
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Make a folder that is whole or absent but no artefact: pages, and models for other programs.

    Yields the folder to write to, which becomes `output` at the end. Errors are those of `Artifact.create`.
    """
    require_local(output, "this output")
    with staged(output, {"identity": {}}) as staging:
        yield staging.path
        flush_folder(staging.path)
        staging._put_in_place()


def _refuse_existing(output: Path | str, place: Path, identity: dict[str, Any]) -> None:
    """Refuse an output that is there already and no empty folder, or is the current folder."""
    if place.resolve() == Path.cwd():
        raise CoCoMixError("the current folder cannot be written as a whole; name a new folder with --output.")
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        keys = differing(json.loads((place / MANIFEST).read_bytes())["identity"], identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        keys = ()
    of = f" and was made with another {', '.join(keys)}" if keys else ""
    if (url := url_of(output)) is not None:
        raise AlreadyExists(
            f"the upload of {place} to {url} was interrupted{of}; `cocomix push {place} {url}` goes on with it, or "
            f"remove {place} to make it again.",
            keys,
        )
    raise AlreadyExists(f"{place} already exists{of}; remove it or choose another --output.", keys)


def begin(folder: Path, about: Mapping[str, Any], identity: Mapping[str, Any] | None) -> None:
    """Record in `PLAN` what a staging folder is of, or refuse it if it was begun as something else.

    Of several jobs that begin one folder at once, one records its plan and the others are compared with it. With no
    identity every one may go on with it.
    """
    plan = folder / PLAN
    if not plan.exists():
        others = [path for path in folder.iterdir() if not (path.name.startswith(".") and path.suffix == ".tmp")]
        if others and not plan.exists():  # it may have come between
            raise MadeFromSomethingElse(f"{folder} holds something else; remove it or choose another --output.")
        ours = folder / f".{uuid.uuid4().hex}.tmp"
        write_json(ours, {**about, "identity": identity})
        try:
            os.link(ours, plan)
        except OSError:  # another job was faster, or the file system has no hard links
            if not plan.exists():
                ours.replace(plan)
        ours.unlink(missing_ok=True)
    found = read_json(plan)
    if keys := differing(found, about):
        raise MadeFromSomethingElse(f"{folder} was begun as {found.get('kind')}; remove it.", keys)
    check_plan(folder, identity or {})


def check_plan(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with what an interrupted command of another identity left, if it goes by that."""
    begun = read_json(folder / PLAN)["identity"] if (folder / PLAN).is_file() else None
    if begun is not None and (keys := differing(begun, as_json(identity))):
        raise MadeFromSomethingElse(
            f"{folder} was begun with another {', '.join(keys)}; remove it or choose another --output.", keys
        )


def seal(
    folder: Path, manifest: M, records: Callable[[str], bool] = lambda name: True, scratch: Collection[str] = ()
) -> M:
    """Hash a folder's files, write its manifest and flush all of it to the disk; returns what was written.

    The manifest has everything but `files`, `fingerprint` and `cocomix_version`; files that it names are not hashed.
    `records` says by its name whether it lists a file; `scratch` at the folder's top is no part of it.
    """
    names = [name for name in file_names(folder, scratch) if name != MANIFEST and records(name)]
    with ThreadPoolExecutor(THREADS) as threads:
        entries = threads.map(lambda name: manifest.files.get(name) or file_entry(folder / name), names)
        files = dict(zip(names, entries, strict=True))
    filled = manifest.model_copy(update={"files": files, "cocomix_version": version("cocomix")})
    filled = filled.model_copy(update={"fingerprint": filled.computed_fingerprint()})
    write_json(folder / MANIFEST, filled.model_dump(mode="json"))
    flush_folder(folder, scratch)
    return filled


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, onerror=_unless_gone) if path.is_dir() else path.unlink(missing_ok=True)


def _unless_gone(_function: Any, _path: str, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):  # another job may be removing the same
        raise error[1]
