"""`cocomix verify`: recognise an artefact and check it."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.artifacts.output import PLAN, read_json
from cocomix.artifacts.remote import cache_folder, download_folder, url_of
from cocomix.integrity.findings import Findings, Verification
from cocomix.integrity.models import check_checkpoint, check_dictionary, check_run, check_unfinished_run
from cocomix.integrity.shards import check_stored
from cocomix.integrity.tables import check_atlas
from cocomix.runtime.console import Reporter, SilentReporter
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.checkpoints import MARK

__all__ = ["verify"]


class _Kind(NamedTuple):
    name: str
    check: Callable[[Path, Findings], None]


_STORED = {
    "tokens": _Kind("prepared data", check_stored),
    "labels": _Kind("concept labels", check_stored),
    "teacher_probabilities": _Kind("teacher probabilities", check_stored),
}
_RUN = _Kind("run", check_run)
_BY_FILE = {
    "atlas.json": _Kind("concept atlas", check_atlas),
    "fit.json": _Kind("dictionary", check_dictionary),
    "cfg.json": _Kind("dictionary", check_dictionary),
    MARK: _Kind("checkpoint", check_checkpoint),
    "checkpoints": _Kind("unfinished run", check_unfinished_run),
    PLAN: _Kind("unfinished shards", check_stored),
    "trainer_state.json": _Kind("checkpoint", check_checkpoint),
}


def verify(path: Path, reporter: Reporter | None = None) -> Verification:
    """Check an artefact: hashes of its files, versions, shapes, and what it says it was made from, where that is near.

    Args:
        path: a folder, or a URL, from which all of it is downloaded: prepared data, labels, teacher probabilities, a
            dictionary, a run (finished or not), a checkpoint, or an atlas. Reads all of it, and of what it refers to
            what is on this machine.
        reporter: shown how many checks are done; how many there will be is not known before.

    Raises:
        CoCoMixError: there is nothing, or nothing that cocomix writes.
    """
    if (url := url_of(path)) is not None:
        return _verify_remote(url, reporter)
    if not path.is_dir():
        raise CoCoMixError(f"{path} is not a folder; give one that a cocomix command wrote.")
    kind, version = _recognise(path)
    with (reporter or SilentReporter()).progress(f"checking {kind.name}", None, "checks") as advance:
        checklist = Findings(advance=advance)
        kind.check(path, checklist)
    return Verification(path, kind.name, version, tuple(checklist.found))


def _verify_remote(url: str, reporter: Reporter | None) -> Verification:
    """Check what is at a URL now, not what the cache has of it."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="verify-") as place:
        folder = Path(place) / url.rsplit("/", 1)[1]
        download_folder(url, folder)
        found = verify(folder, reporter)
        findings = tuple(
            replace(finding, detail=finding.detail.replace(str(folder), url)) for finding in found.findings
        )
    return replace(found, path=Path(url), findings=findings)


def _recognise(path: Path) -> tuple[_Kind, int]:
    """What a folder is, and its format version."""
    for file, kind in _BY_FILE.items():
        if (path / file).exists():
            return kind, _version(path / file)
    if (path / "manifest.json").is_file():
        values = read_json(path / "manifest.json")
        found = values.get("kind") if isinstance(values, dict) else None
        if found in _STORED:
            return _STORED[found], int(values["version"])
        if found == "run":
            return _RUN, _version(path / "manifest.json")
    raise CoCoMixError(
        f"{path} is nothing that cocomix writes: it has neither manifest.json, fit.json, atlas.json nor checkpoints."
    )


def _version(file: Path) -> int:
    """The format version a manifest names; 1 where there was only one so far."""
    if file.suffix != ".json":
        return 1
    values: Any = read_json(file)
    return int(values.get("format_version", 1)) if isinstance(values, dict) else 1
