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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

from cocomix.artifacts.faults import AlreadyExists, BeingWritten, MadeFromSomethingElse, Unreachable
from cocomix.artifacts.files import aside_path, explained_full_disk, flush, flush_folder, read_json, write_json
from cocomix.artifacts.lock import locked, this_process
from cocomix.artifacts.manifests import MANIFEST, M, Manifest, differing, file_entry
from cocomix.artifacts.store import cache_place, copy_place
from cocomix.artifacts.uploading import Claim, claimed
from cocomix.artifacts.urls import require_local, shown, url_of
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import Terminated

__all__ = [
    "PLAN",
    "THREADS",
    "Staging",
    "as_json",
    "check_plan",
    "lock_path",
    "made_at",
    "partial_path",
    "publish",
    "seal",
    "staged",
    "whole_folder",
]

PLAN = "plan.json"
"""Within a staging folder that can be gone on with: the kind, the identity, and the process that began it."""
THREADS = min(8, os.cpu_count() or 1)
"""That hash files; hashlib lets other threads run meanwhile."""


def made_at(output: Path | str) -> Path:
    """Where an output is made on this machine: itself, or the place in the cache from which it is uploaded."""
    url = url_of(output)
    return Path(output) if url is None else cache_place(url, "outgoing")


def partial_path(output: Path | str) -> Path:
    """The staging folder of an output that can be gone on with, `NAME.partial`; of a URL it is in the cache."""
    return _beside(made_at(output), ".partial")


def lock_path(output: Path | str) -> Path:
    """The lock file of an output, `NAME.lock` beside the place where it is made."""
    return _beside(made_at(output), ".lock")


def _beside(place: Path, suffix: str) -> Path:
    if place.name in ("", ".."):  # `.` and `..` have no name of their own
        place = place.resolve()
    return place.with_name(place.name + suffix)


class Staging(Generic[M]):
    """An output while it is made.

    Attributes:
        path: the folder to write files to, in any subfolders.
        output: what it becomes.
        finished: whether it did.
    """

    def __init__(self, path: Path, output: Path, finish: Callable[[M | None, Sequence[str]], M | None]) -> None:
        self.path = path
        self.output = output
        self.finished = False
        self._finish = finish

    def finish(self, manifest: M, scratch: Sequence[str] = ()) -> M:
        """Hash the files, write the manifest, flush all to the disk, rename the folder, upload it if `output` is a URL.

        Args:
            manifest: with the fields of its kind, and `made_from`; the rest is filled in.
            scratch: files and folders in it that only serve to go on after an interruption. They are removed after the
                folder was renamed, so that a command killed before loses nothing.

        Returns:
            The manifest that was written.
        """
        written = self._finish(manifest, scratch)
        assert written is not None
        self.finished = True
        return written

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Let one of the jobs that share the folder finish it.

        Yields:
            Whether this one may: no other is at it, and the output is not there yet.
        """
        try:
            with locked(_beside(made_at(self.output), ".finishing.lock"), shown(self.output)):
                yield self.path.is_dir()
        except BeingWritten:
            yield False


@contextmanager
def staged(
    output: Path | str,
    kind: str,
    format_version: int,
    identity: Mapping[str, Any],
    records: Callable[[str], bool],
    *,
    resume: bool = False,
    shared: bool = False,
    any_identity: bool = False,
) -> Iterator[Staging[M]]:
    """`Artifact.create`, which says what the arguments mean, for a kind of a version that `records` some files."""
    place, url, kept = made_at(output), url_of(output), resume or shared
    folder = _beside(place, ".partial" if kept else f".partial-{uuid.uuid4().hex[:8]}")
    identity = as_json(identity)

    def finish(manifest: M | None, scratch: Sequence[str]) -> M | None:
        for left in list(folder.rglob(".*.tmp")):  # half written by killed processes
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        skipped = (PLAN, *scratch)
        if manifest is None:
            flush_folder(folder)
        else:
            manifest = manifest.model_copy(update={"kind": kind, "version": format_version, "identity": identity})
            manifest = seal(
                folder,
                manifest,
                lambda name: records(name) and not f"{name}/".startswith(tuple(f"{entry}/" for entry in skipped)),
            )
        if place.exists():
            place.rmdir()
        folder.rename(place)
        for name in (place / entry for entry in skipped):
            shutil.rmtree(name) if name.is_dir() else name.unlink(missing_ok=True)
        flush(place.parent)
        if claim is not None:
            publish(place, claim)
        return manifest

    with ExitStack() as held:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock_path(output), shown(output), shared=shared))
            _refuse_existing(output, place, identity)
            if not kept:  # what killed processes left: the lock is ours
                for left in place.parent.glob(glob.escape(_beside(place, ".partial-").name) + "*"):
                    shutil.rmtree(left)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CoCoMixError(f"cannot write to {place.parent}: {error.strerror}; choose another --output.") from error
        staging: Staging[M] = Staging(folder, Path(output), finish)
        try:
            claim = None if url is None else held.enter_context(claimed(url))
            with explained_full_disk(folder):
                if kept:
                    _claim_staging(output, kind, format_version, None if any_identity else identity)
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

    Yields:
        The folder to write to, which becomes `output` at the end.

    Raises:
        CoCoMixError: as `Artifact.create`.
    """
    require_local(output, "this output")
    staged_folder: AbstractContextManager[Staging[Manifest]] = staged(output, "", 0, {}, lambda name: True)
    with staged_folder as staging:
        yield staging.path
        staging._finish(None, ())
        staging.finished = True


def publish(folder: Path, claim: Claim) -> None:
    """Upload a finished folder from the cache and keep it there as the local copy of what was uploaded.

    Raises:
        Unreachable: the upload failed; the folder is kept.
    """
    url = claim.remote.url
    try:
        claim.publish(folder)
    except Unreachable as error:
        raise Unreachable(
            f"{str(error).rstrip('.')}; the output is whole in {folder}: run the same command again, or `cocomix push "
            f"{folder} {url}`, to upload it."
        ) from error
    copy = copy_place(url, (folder / MANIFEST).read_bytes())
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    folder.rename(copy)


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
        push = f"its upload was interrupted: `cocomix push {place} {url}` uploads it; or remove {place}"
        raise AlreadyExists(f"{url} was made before{of}, but {push} to make it again.", keys)
    raise AlreadyExists(f"{place} already exists{of}; remove it or choose another --output.", keys)


def _claim_staging(output: Path | str, kind: str, format_version: int, identity: Mapping[str, Any] | None) -> None:
    """Record in `PLAN` what a staging folder is of, or check that it was begun as the same.

    Of several jobs that begin one folder at once, one records its plan and the others are compared with it.

    Raises:
        MadeFromSomethingElse: it was begun with another identity, or holds something else.
    """
    folder, wanted = partial_path(output), {"kind": kind, "version": format_version}
    plan = folder / PLAN
    if not plan.exists():
        others = [path for path in folder.iterdir() if not (path.name.startswith(".") and path.suffix == ".tmp")]
        if others and not plan.exists():  # it may have come between
            raise MadeFromSomethingElse(f"{folder} holds something else; remove it or choose another --output.")
        write_json(aside := aside_path(plan), {**wanted, "identity": identity, "process": this_process()})
        try:
            os.link(aside, plan)
        except OSError:  # another job was faster, or the file system has no hard links
            if not plan.exists():
                aside.replace(plan)
        aside.unlink(missing_ok=True)
    found = read_json(plan)
    if keys := differing({name: found.get(name) for name in wanted}, wanted):
        raise MadeFromSomethingElse(f"{folder} was begun as {found.get('kind')}; remove it.", keys)
    check_plan(output, identity or {})


def check_plan(output: Path | str, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with what an interrupted command of another identity left, if it goes by that.

    Raises:
        MadeFromSomethingElse: naming the keys, of those in `identity`, that differ.
    """
    plan = partial_path(output) / PLAN
    begun = read_json(plan)["identity"] if plan.is_file() else None
    if begun is not None and (keys := differing({key: begun.get(key) for key in identity}, as_json(identity))):
        raise MadeFromSomethingElse(
            f"{plan.parent} was begun with another {', '.join(keys)}; remove it or choose another --output.", keys
        )


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it is read back: tuples are lists in JSON."""
    values: dict[str, Any] = json.loads(json.dumps(dict(identity), allow_nan=False))
    return values


def seal(folder: Path, manifest: M, records: Callable[[str], bool] = lambda name: True) -> M:
    """Hash a folder's files, write its manifest and flush all of it to the disk.

    Args:
        folder: with all files written.
        manifest: with everything but `files`, `fingerprint` and `cocomix_version`; files that it names are not hashed.
        records: whether the manifest lists a file, by its name.

    Returns:
        The manifest that was written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = [name for name in names if name != MANIFEST and records(name)]

    with ThreadPoolExecutor(THREADS) as threads:
        entries = threads.map(lambda name: manifest.files.get(name) or file_entry(folder / name), listed)
        files = dict(zip(listed, entries, strict=True))
    filled = manifest.model_copy(update={"files": files, "cocomix_version": version("cocomix")})
    filled = filled.model_copy(update={"fingerprint": filled.computed_fingerprint()})
    write_json(folder / MANIFEST, filled.model_dump(mode="json"))
    flush_folder(folder)
    return filled
