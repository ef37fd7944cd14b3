"""URLs where paths are expected: `s3://`, `gs://`, `hf://`, `memory://`, ….

`Path("s3://bucket/data")` reads `s3:/bucket/data`, as `Path` drops a slash; `url_of` gives it back. Access keys come
from where the file system's own library looks for them (environment, profile, role); a URL that holds some is refused.
"""

import re
from pathlib import Path

from cocomix.runtime.errors import CoCoMixError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(.*)", re.DOTALL)
# A secret may hold slashes and `@`, so what follows `user:` is taken out up to the last `@` of the word.
_USER_INFO = re.compile(r"(\w:/{1,2})[^/\s@:]*:\S*@|(https?:/{1,2})[^/\s@]+@")
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


def shown(path: Path | str) -> str:
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
