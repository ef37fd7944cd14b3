"""URLs where paths are expected: what they name, the folders there that fsspec opens, and the cache of copies of them.

`Path("s3://bucket/data")` reads `s3:/bucket/data`, as `Path` drops a slash; `url_of` gives it back. Access keys come
from where the file system's own library looks for them (environment, profile, role); a URL that holds some is refused.
"""

import errno
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import fsspec
from filelock import FileLock

from cocomix.artifacts.faults import Damaged, Unreachable
from cocomix.artifacts.files import check_name, written_aside
from cocomix.runtime.errors import CoCoMixError

T = TypeVar("T")
_ATTEMPTS = 5
_FIRST_WAIT = 0.5  # seconds before the second attempt; doubled before each further one
_LASTING = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
    ValueError,  # and so every `CoCoMixError`
)
_LASTING_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOSYS)  # what another attempt does not mend
_S3_ONCE = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
"""For botocore: no attempts of its own, nor of s3fs (its `retries`), of which each would be multiplied by ours."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(.*)", re.DOTALL)
# A secret may hold slashes and `@`, so what follows `user:` is taken out up to the last `@` of the word.
_USER_INFO = re.compile(r"(\w:/{1,2})[^/\s@:]*:\S*@|(https?:/{1,2})[^/\s@]+@")
_SECRET_PARAMETER = re.compile(
    r"([?&][^=&\s]*(?:key|token|secret|signature|sig|password|credential)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for, without a slash at its end; `None` for a path on this machine.

    Raises `CoCoMixError` where the URL holds access keys, names nothing, or leads upwards.
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


def shown(path: Path | str) -> str:
    """A path as a person writes it: a URL with both its slashes."""
    return url_of(path) or str(path)


def require_local(path: Path, what: str) -> None:
    """Refuse a URL where a folder on this machine is needed; `what` says of whom, as in "a run"."""
    if (url := url_of(path)) is not None:
        raise CoCoMixError(f"{url}: {what} must be on this machine; copy it here, or give a folder.")


def is_there(path: Path) -> bool:
    """Whether a path exists here, or is a URL, which shows when it is opened."""
    return url_of(path) is not None or path.exists()


def retried(action: Callable[[], T]) -> T:
    """What `action` returns; a few attempts are made, with growing waits, if it fails as networks do.

    The libraries under fsspec (botocore, aiohttp, httpx, google, huggingface_hub) share no class for network faults, so
    everything is tried again but what is known to last: nothing there, no right, no room.
    """
    for attempt in range(_ATTEMPTS - 1):
        try:
            return action()
        except Exception as error:
            # the last clause: botocore's NoCredentialsError, google's DefaultCredentialsError, …
            if (
                isinstance(error, _LASTING)
                or getattr(error, "errno", None) in _LASTING_ERRNO
                or "Credentials" in type(error).__name__
            ):
                raise
            time.sleep(_FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25))  # workers do not come back all at once
    return action()


class NotThere(CoCoMixError):
    """A file or folder at a URL does not exist."""


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Say in one sentence what a file system's library raises, whichever it is; secrets in its words are left out.

    A missing file becomes `NotThere`, a missing right `CoCoMixError`, everything else `Unreachable`.
    """
    try:
        yield
    except CoCoMixError:
        raise
    except FileNotFoundError as error:
        raise NotThere(f"{url} does not exist ({_sentence(error)}).") from error
    except PermissionError as error:
        raise CoCoMixError(f"{url}: access is refused ({_sentence(error)}); check your access keys.") from error
    except Exception as error:  # each library has a hierarchy of its own
        raise Unreachable(
            f"{url} cannot be reached ({type(error).__name__}: {_sentence(error)}); check the address, the network and "
            "your access keys."
        ) from error


def _sentence(error: BaseException) -> str:
    return redacted(" ".join(str(error).split()).rstrip(".")) or type(error).__name__


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it; refused if unknown, or if a package is missing."""
    scheme = url.split(":")[0]
    if scheme in ("file", "local"):
        options["auto_mkdir"] = True
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


def cache_folder() -> Path:
    """Where local copies and unfinished outputs are: `COCOMIX_CACHE`, by default `~/.cache/cocomix`."""
    given = os.environ.get("COCOMIX_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "cocomix"


def cache_place(url: str, kind: str) -> Path:
    """The folder of the cache that belongs to a URL: `CACHE/KIND/s3/bucket/…`."""
    scheme, place = url.split("://", 1)
    parts = [quote(part, safe=" @+=,()[]") for part in place.split("/") if part not in ("", ".")]
    return cache_folder().joinpath(kind, scheme, *parts)


def copy_place(url: str, manifest: bytes) -> Path:
    """The local copy of what is at a URL: a folder for every content of the manifest, so that versions never mix."""
    return cache_place(url, "copies") / hashlib.sha256(manifest).hexdigest()[:16]


class RemoteFolder:
    """A folder at a URL, as `url_of` has it. Every method tries again on network faults, and raises as `explained`."""

    def __init__(self, url: str) -> None:
        self.url = url
        on_s3 = url.startswith(("s3:", "s3a:"))
        self._system, self._path = file_system(url, **(_S3_ONCE if on_s3 else {}))
        if on_s3:
            self._system.retries = 1

    def files(self) -> dict[str, int]:
        """Names and sizes in bytes of all files below it; none if it does not exist.

        Raises `OutsideFolder` where a name leads out of the folder, as object stores allow.
        """
        with explained(self.url):
            self._system.invalidate_cache()
            try:
                found = retried(lambda: self._system.find(self._path, detail=True))
            except FileNotFoundError:
                return {}
            start = len(self._path.rstrip("/")) + 1
            return {
                check_name(path[start:]): int(entry["size"] or 0)
                for path, entry in sorted(found.items())
                if path[start:]  # some stores list a folder as an empty file
            }

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        content: bytes = self._do(name, self._system.cat_file)
        return content

    def download(self, name: str, file: Path, size: int | None = None) -> None:
        """Copy a file here; it appears when it is whole. See `get`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            self.get(name, aside, size)

    def get(self, name: str, file: Path, size: int | None = None) -> None:
        """Copy a file to `file`; what is there, also of a failed attempt, is written over.

        Raises `Damaged` where it is not of `size` bytes there; fewer that arrive are a fault of the network.
        """

        def attempt(path: str) -> None:
            self._system.get_file(path, str(file))
            arrived = file.stat().st_size
            if size is None or arrived == size:
                return
            self._system.invalidate_cache()
            if self._system.info(path).get("size") == arrived:
                raise Damaged(f"{self.url}/{name} has {arrived:,} bytes instead of {size:,}; restore it.", name)
            raise OSError(f"{arrived:,} of {size:,} bytes arrived")

        self._do(name, attempt)

    def upload(self, name: str, file: Path) -> None:
        """Copy a file there."""
        self._do(name, lambda path: self._system.put_file(str(file), path))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._do(name, lambda path: self._system.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless it is there, in one step where the store can (S3, GCS, memory), or return False.

        A store that cannot do it in one step may say yes to two writers at once.
        """

        def attempt(path: str) -> bool:
            try:
                self._system.pipe_file(path, content, mode="create")
            except Exception as error:  # S3's "precondition failed" has no class of its own
                self._system.invalidate_cache()
                if self._system.exists(path):
                    return False
                unable = isinstance(error, (NotImplementedError, TypeError))
                if not unable and getattr(error, "errno", 0) != errno.ENOSYS:
                    raise
                self._system.pipe_file(path, content)
            return True

        return self._do(name, attempt)

    def remove(self, name: str) -> None:
        """Remove a file, as far as that is possible."""
        with suppress(CoCoMixError):
            self._do(name, self._system.rm_file)
            self._system.invalidate_cache()

    def _do(self, name: str, action: Callable[[str], T]) -> T:
        path = f"{self._path}/{check_name(name)}"
        with explained(f"{self.url}/{name}"):
            return retried(lambda: action(path))


class VerifiedFiles:
    """Which files of a folder were hashed on this machine and found right, so that no process hashes them again.

    A file counts as the one that was hashed while its size, its times of change and its recorded hash are the same. The
    record lies in the cache, not in the artefact, which may be read-only or on a disk that several machines share: a
    line per hashed file, appended, so that processes need no lock to write it.
    """

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
        self._record = cache_folder() / "verified" / name
        self._known: set[str] = set()

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether the file, as it is now, was hashed before and had this hash."""
        if not path.is_file():
            return False
        line = _line(path, sha256)
        if line not in self._known:
            with suppress(OSError):
                self._known.update(self._record.read_text(encoding="utf-8").splitlines())
        return line in self._known

    def note(self, path: Path, sha256: str) -> None:
        """Record that the file has this hash. Where the cache cannot be written, for this process only."""
        line = _line(path, sha256)
        self._known.add(line)
        with suppress(OSError):
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with self._record.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Let one process at a time fetch or hash a file; the others wait, and find it done."""
        lock = FileLock(f"{self._record}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
        with suppress(OSError):  # where the cache cannot be written, each does it for itself
            self._record.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _line(path: Path, sha256: str) -> str:
    found = path.stat()
    return json.dumps([str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, sha256])
