"""`cocomix export`: a run as a folder that transformers loads without cocomix."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from cocomix.artifacts import explained_full_disk, read_json, whole_folder, write_json, write_text
from cocomix.evaluation import Run
from cocomix.interop.card import model_card
from cocomix.interop.source_files import AUTO_MAP, write_source_files
from cocomix.model import CoCoMixConfig
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_COPIED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
)
_PIECE = 1 << 20  # bytes


def export_run(
    path: Path,
    output: Path,
    *,
    license: str | None = None,
    languages: tuple[str, ...] = (),
) -> Path:
    """Write a run as a self-contained model repository.

    It holds the weights as they are, the tokenizer, a model card filled from the run and, unless the model is a plain
    decoder, the code of its classes, so that `AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)`
    needs transformers alone.

    Args:
        output: the folder to write; must not exist.
        license: identifier of the weights' licence as the hub knows it, e.g. `apache-2.0`; `None` leaves it open.
        languages: of the text, e.g. `en`.

    Returns:
        `output`.

    Raises:
        CoCoMixError: there is no finished run in `path`; its files have changed since it was trained; `output` exists.
    """
    run = Run.open(path)
    config = read_json(run.path / "config.json")
    files = sorted(file for pattern in _COPIED for file in run.path.glob(pattern))
    hashes = {name: entry.sha256 for name, entry in run.manifest.files.items()}
    _check_complete(run, files, hashes)
    with whole_folder(output) as folder, explained_full_disk(folder):
        size = sum(file.stat().st_size for file in files)
        with progress("copying weights and tokenizer", size, "bytes") as advance:
            for file in files:
                found = _copied(file, folder / file.name, advance)
                if found != hashes.get(file.name, found):
                    raise CoCoMixError(
                        f"{file} has changed since the run was trained; restore it from a copy, or train the run again."
                    )
        config.pop("auto_map", None)
        if config.get("model_type") == CoCoMixConfig.model_type:
            config["auto_map"] = AUTO_MAP
            write_source_files(folder)
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", model_card(run, license=license, languages=languages))
    logger.info(f"{run.manifest.name} is in {output}, {size:,} bytes of weights and tokenizer, with a model card")
    return output


def _copied(source: Path, target: Path, advance: Callable[[float], None]) -> str:
    """Copy a file in pieces; returns its SHA-256 (hex)."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(_PIECE):
            digest.update(piece)
            write.write(piece)
            advance(len(piece))
    return digest.hexdigest()


def _check_complete(run: Run, files: list[Path], hashes: dict[str, str]) -> None:
    """Refuse a run whose weights or tokenizer are missing."""
    names = {file.name for file in files}
    expected = {"tokenizer.json", *(name for name in hashes if name.endswith(".safetensors"))}
    missing = sorted(expected - names)
    if missing or not any(name.endswith(".safetensors") for name in names):
        raise CoCoMixError(
            f"{run.path} lacks {', '.join(missing) or 'its weights'}; restore the run from a copy, or train it again."
        )
