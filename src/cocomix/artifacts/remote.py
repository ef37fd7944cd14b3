"""Folders at URLs that fsspec opens: `s3://`, `gs://`, `hf://`, `memory://`, ….

Shards are read through memory maps, so what is read lies on this machine: `local_folder` gives a folder of the cache
that holds the small files of the remote one and takes a shard when it is asked for (`fetched`). What is written is
made in the cache, too, and uploaded when it is whole, its manifest last (`cocomix.artifacts.uploads`): a folder without
one is no artefact.

URLs may stand wherever paths do. `Path("s3://bucket/data")` reads `s3:/bucket/data`, as `Path` drops a slash; `url_of`
gives it back. Access keys come from where the file system's own library looks for them (environment, profile, role);
a URL that holds some is refused.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
from filelock import FileLock

from cocomix.runtime.errors import CoCoMixError

__all__ = [
    "ORIGIN",
    "cache_folder",
    "cache_place",
    "download_folder",
    "explained",
    "fetched",
    "file_system",
    "is_there",
    "known_size",
    "listing",
    "local_folder",
    "redacted",
    "require_local",
    "shown",
    "url_of",
    "write_origin",
]

ORIGIN = ".origin.json"
"""Within a local copy: where it is from, and the sizes of the files there."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(.*)", re.DOTALL)
_USER_INFO = re.compile(r"(\w:/{1,2})[^/\s@]*:[^/\s@]*@|(https?:/{1,2})[^/\s@]+@")
_SECRET_PARAMETER = re.compile(
    r"([?&][^=&\s]*(?:key|token|secret|signature|sig|password|credential)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, without a slash at its end; `None` for a path on this machine.

    Raises:
        CoCoMixError: the URL holds access keys, names nothing, or leads upwards.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        return None
    scheme, place = found[1].lower(), found[2].strip("/")
    url = f"{scheme}://{'/' if scheme in ('file', 'local') else ''}{place}"
    if redacted(url) != url:
        raise CoCoMixError(
            f"{redacted(url)} holds an access key or token; take it out, and give it in the environment or in the "
            "configuration of the file system."
        )
    if not place or ".." in place.split("/"):
        raise CoCoMixError(f"{url} is no folder that can be used; give a URL such as s3://BUCKET/FOLDER.")
    return url


def redacted(text: str) -> str:
    """A text with what looks like access keys in its URLs taken out."""
    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1\2***@", text))


def shown(path: Path) -> str:
    """A path as a person writes it: a URL with both its slashes."""
    return url_of(path) or str(path)


def require_local(path: Path, what: str) -> None:
    """Refuse a URL where a folder on this machine is needed.

    Raises:
        CoCoMixError: `path` is one; `what` says of whom, as in "a run".
    """
    if (url := url_of(path)) is not None:
        raise CoCoMixError(f"{url}: {what} must be on this machine; copy it here, or give a folder.")


def is_there(path: Path) -> bool:
    """Whether a path exists here, or is a URL, which shows when it is opened."""
    return url_of(path) is not None or path.exists()


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it.

    Raises:
        CoCoMixError: the kind of URL is unknown, or the package for it is missing.
    """
    scheme = url.split(":")[0]
    options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise CoCoMixError(
            f"{url} needs a package that is missing ({_sentence(error)}); pip install 'cocomix[remote]' brings s3fs, "
            "others are installed by name."
        ) from error
    except ValueError as error:
        raise CoCoMixError(f"{url}: {scheme}:// is no file system that is known here ({_sentence(error)}).") from error
    return system, str(path)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Say in one sentence what a file system's library raises, whichever it is; secrets in its words are left out.

    Raises:
        CoCoMixError: instead of any other exception of the block.
    """
    try:
        yield
    except CoCoMixError:
        raise
    except FileNotFoundError as error:
        raise CoCoMixError(f"{url} does not exist ({_sentence(error)}).") from error
    except PermissionError as error:
        raise CoCoMixError(f"{url}: access is refused ({_sentence(error)}); check your access keys.") from error
    except Exception as error:  # botocore, aiohttp, google, huggingface_hub: each has a hierarchy of its own
        raise CoCoMixError(
            f"{url} cannot be reached ({type(error).__name__}: {_sentence(error)}); check the address, the network and "
            "your access keys."
        ) from error


def _sentence(error: BaseException) -> str:
    return redacted(" ".join(str(error).split()).rstrip(".")) or type(error).__name__


# ---- the cache -----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where local copies and unfinished outputs are: `COCOMIX_CACHE`, by default `~/.cache/cocomix`."""
    given = os.environ.get("COCOMIX_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "cocomix"


def cache_place(url: str, kind: str) -> Path:
    """The folder of the cache that belongs to a URL: `CACHE/KIND/s3/bucket/…`."""
    scheme, place = url.split("://", 1)
    parts = [quote(part, safe=" @+=,()[]") for part in place.split("/") if part not in ("", ".")]
    return cache_folder().joinpath(kind, scheme, *parts)


def local_folder(path: Path | str, manifest: str, folders: Sequence[str] = ()) -> Path:
    """A folder on this machine: `path` itself, or the local copy of a remote one, begun if need be.

    A copy has a name of its own for every content of the manifest, so that it never mixes two versions.

    Args:
        path: a folder or a URL.
        manifest: the file that makes it an artefact.
        folders: subfolders that are copied at once; any other file comes with `fetched`.

    Raises:
        CoCoMixError: there is no such remote folder, it has no manifest, or it cannot be reached.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    content = _read_manifest(url, manifest)
    place = cache_place(url, "copies") / hashlib.sha256(content).hexdigest()[:16]
    if not (place / ORIGIN).is_file():
        _begin_copy(url, place, manifest, content, folders)
    return place


def _read_manifest(url: str, manifest: str) -> bytes:
    system, path = file_system(url)
    with explained(url):
        try:
            content: bytes = system.cat_file(f"{path}/{manifest}")
        except FileNotFoundError:
            if not listing(url):
                raise
            raise CoCoMixError(
                f"{url} has no {manifest}: it is something else, or its upload was interrupted; make it again, or "
                "upload it again with `cocomix push`."
            ) from None
    return content


def _begin_copy(url: str, place: Path, manifest: str, content: bytes, folders: Sequence[str]) -> None:
    """Make the local copy of a folder: its manifest, some subfolders, and a list of the rest."""
    files = listing(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place.parent, prefix=".begun-"))
    try:
        (made / manifest).write_bytes(content)
        for name in files:
            if name.split("/")[0] in folders and "/" in name:
                _download(f"{url}/{name}", made / name)
        write_origin(made, url, files)
        try:
            made.rename(place)
        except OSError:  # another process made it meanwhile
            if not (place / ORIGIN).is_file():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_origin(folder: Path, url: str, files: dict[str, int]) -> None:
    """Note in a local copy where it is from and which files, of how many bytes, are there."""
    (folder / ORIGIN).write_text(json.dumps({"url": url, "files": files}), encoding="utf-8")


def fetched(path: Path, intact: Callable[[Path], bool]) -> Path:
    """`path`; if it belongs to a local copy and is not there yet, it is downloaded and checked first.

    Args:
        path: a file, which may be missing.
        intact: whether a downloaded file is the one that the manifest describes.

    Raises:
        CoCoMixError: it cannot be downloaded, or is not intact.
    """
    if path.is_file() or (folder := _copy_of(path)) is None:
        return path
    url = f"{_origin(folder)['url']}/{path.relative_to(folder).as_posix()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                _download(url, aside)
                if not intact(aside):
                    raise CoCoMixError(
                        f"{url} is not the file that its manifest describes; upload the folder again, or make it again."
                    )
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
    return path


def known_size(path: Path) -> int | None:
    """Bytes of a file that is here or, in a local copy, at its origin; `None` where it is missing."""
    if path.is_file():
        return path.stat().st_size
    if (folder := _copy_of(path)) is None:
        return None
    size: int | None = _origin(folder)["files"].get(path.relative_to(folder).as_posix())
    return size


def _copy_of(path: Path) -> Path | None:
    """The local copy that a file belongs to."""
    return next((parent for parent in list(path.parents)[:3] if (parent / ORIGIN).is_file()), None)


@lru_cache(maxsize=32)
def _origin(folder: Path) -> dict[str, Any]:
    origin: dict[str, Any] = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return origin


# ---- remote files --------------------------------------------------------------------------------------------------


def listing(url: str) -> dict[str, int]:
    """Names, relative to a remote folder, and sizes in bytes of all files below it; none if it does not exist.

    Raises:
        CoCoMixError: it cannot be reached.
    """
    system, path = file_system(url)
    with explained(url):
        system.invalidate_cache()
        try:
            found = system.find(path, detail=True)
        except FileNotFoundError:
            return {}
        start = len(path.rstrip("/")) + 1
        return {name[start:]: int(entry["size"] or 0) for name, entry in sorted(found.items()) if name[start:]}


def download_folder(url: str, folder: Path) -> None:
    """Copy a remote folder, but for artefacts within it that have a manifest of their own, as labels within data.

    Raises:
        CoCoMixError: there is none, or it cannot be reached.
    """
    files = listing(url)
    if not files:
        raise CoCoMixError(f"{url} does not exist, or holds nothing.")
    inner = tuple(name.removesuffix("manifest.json") for name in files if name.endswith("/manifest.json"))
    for name in files:
        if not (inner and name.startswith(inner)):
            _download(f"{url}/{name}", folder / name)


def _download(url: str, file: Path) -> None:
    system, path = file_system(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    with explained(url):
        system.get_file(path, str(file))
