"""Outputs at URLs: made in the cache, then uploaded, the manifest last."""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from cocomix.artifacts.remote import ORIGIN, cache_place, explained, file_system, listing, url_of, write_origin
from cocomix.runtime.errors import CoCoMixError

__all__ = ["abandon", "begin", "made_at", "publish", "push"]

MANIFESTS = ("meta.json", "fit.json", "cfg.json", "atlas.json", "manifest.json")
"""Files that make a folder an artefact, in the order in which they are uploaded."""
_MARK = ".cocomix-upload"
"""At the remote folder, while it is being made."""


def made_at(url: str) -> Path:
    """Where an output is made before it is uploaded."""
    return cache_place(url, "outgoing")


def begin(url: str) -> None:
    """Mark a remote folder as being made; so a missing bucket or a missing right shows before the work, not after.

    Raises:
        CoCoMixError: something is there already, or nothing can be written there.
    """
    files = listing(url)
    if any(name in MANIFESTS for name in files):
        raise CoCoMixError(f"{url} already exists; remove it or choose another --output.")
    if files and _MARK not in files:
        raise CoCoMixError(f"{url} holds something else; remove it or choose another --output.")
    if (made := made_at(url)).exists():
        raise CoCoMixError(
            f"{url} was made before, but its upload was interrupted; `cocomix push {made} {url}` uploads it, or remove "
            f"{made} to make it again."
        )
    system, path = file_system(url)
    with explained(url):
        system.pipe_file(f"{path}/{_MARK}", b"")


def abandon(url: str) -> None:
    """Take the mark away again, as far as that is possible."""
    with suppress(Exception):
        system, path = file_system(url)
        system.rm_file(f"{path}/{_MARK}")


def publish(folder: Path, url: str) -> None:
    """Upload a finished output from the cache and keep it there as the local copy of what was uploaded.

    Raises:
        CoCoMixError: the upload failed; the output is kept.
    """
    try:
        _upload(folder, url)
    except CoCoMixError as error:
        raise CoCoMixError(
            f"{str(error).rstrip('.')}; the output is whole in {folder}: `cocomix push {folder} {url}` uploads it."
        ) from error
    _keep(folder, url)


def push(folder: Path, url: Path | str) -> str:
    """Copy a finished artefact from this machine to a URL (`cocomix push`).

    Args:
        folder: any folder that a cocomix command wrote.
        url: the folder to write; what an interrupted upload left there is replaced.

    Returns:
        The URL.

    Raises:
        CoCoMixError: the folder is no finished artefact; something else is at the URL; the upload failed.
    """
    place = url_of(url)
    if place is None:
        raise CoCoMixError(f"{url} is no URL; give one such as s3://BUCKET/FOLDER, or copy the folder yourself.")
    if not any((folder / name).is_file() for name in MANIFESTS):
        raise CoCoMixError(f"{folder} holds no finished artefact (none of {', '.join(MANIFESTS)}).")
    files = listing(place)
    if any(name in MANIFESTS for name in files) or (files and _MARK not in files):
        raise CoCoMixError(f"{place} already exists; remove it or choose another URL.")
    _upload(folder, place)
    if folder == made_at(place):
        _keep(folder, place)
    return place


def _upload(folder: Path, url: str) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    last = [name for name in MANIFESTS if name in names]
    system, path = file_system(url)
    with explained(url):
        system.pipe_file(f"{path}/{_MARK}", b"")
        for name in names:
            if name not in last and name != ORIGIN:
                system.put_file(str(folder / name), f"{path}/{name}")
        there = listing(url)
        for name in names:
            if name not in last and name != ORIGIN and there.get(name) != (folder / name).stat().st_size:
                raise CoCoMixError(f"{url}/{name} did not arrive whole.")
        for name in last:
            system.put_file(str(folder / name), f"{path}/{name}")
        system.rm_file(f"{path}/{_MARK}")
        system.invalidate_cache()


def _keep(folder: Path, url: str) -> None:
    """Move an uploaded output to where its local copy would be."""
    manifest = next((name for name in ("meta.json", "manifest.json") if (folder / name).is_file()), None)
    if manifest is None:
        shutil.rmtree(folder)
        return
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    write_origin(folder, url, files)
    place = cache_place(url, "copies") / hashlib.sha256((folder / manifest).read_bytes()).hexdigest()[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    folder.rename(place)
