"""`cocomix export`: a run as a folder that transformers loads without cocomix, with the model's code as flat files.

Transformers copies the files that a repository's `auto_map` names, and every file these import as `from .name import`,
into a folder of its own and imports them from there. So a module `cocomix.model.predictor` becomes
`predictor_cocomix.py`, an import of it becomes `from .predictor_cocomix import …`, and nothing else changes.
"""

import inspect
import logging
import re
import shutil
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path

from cocomix.artifacts import explained_full_disk, file_sha256, read_json, whole_folder, write_json, write_text
from cocomix.evaluation import Run
from cocomix.interop.card import model_card
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM, plain_decoder
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_COPIED = (
    *("*.safetensors", "*.safetensors.index.json", "generation_config.json", "tokenizer*"),
    "special_tokens_map.json",
)


def export_run(
    path: Path, output: Path, *, decoder: bool = False, license: str | None = None, languages: tuple[str, ...] = ()
) -> Path:
    """Write a run as a self-contained model repository.

    It holds the weights as they are, the tokenizer, a model card filled from the run and, unless the model is a plain
    decoder, the code of its classes, so that `AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)`
    needs transformers alone.

    Args:
        decoder: write the plain decoder inside a run with `mixing: none` (`plain_decoder`), without its predictor.
        license: identifier of the weights' licence as the hub knows it, e.g. `apache-2.0`; `None` leaves it open.
        languages: of the text, e.g. `en`.

    Raises:
        CoCoMixError: there is no finished run in `path`; its files have changed since it was trained; `output` exists;
            `decoder`, and the run is no plain decoder.
    """
    run = Run.open(path)
    if decoder:
        return _export_decoder(run, output, license, languages)
    config = read_json(run.path / "config.json")
    files = sorted(file for pattern in _COPIED for file in run.path.glob(pattern))
    hashes = {name: entry.sha256 for name, entry in run.manifest.files.items()}
    expected = {"tokenizer.json", *(name for name in hashes if name.endswith(".safetensors"))}
    missing = sorted(expected - {file.name for file in files})
    if missing or not any(file.suffix == ".safetensors" for file in files):
        raise CoCoMixError(
            f"{run.path} lacks {', '.join(missing) or 'its weights'}; restore the run from a copy, or train it again."
        )
    with whole_folder(output) as folder, explained_full_disk(folder):
        size = sum(file.stat().st_size for file in files)
        with progress("copying weights and tokenizer", size, "bytes") as advance:
            for file in files:
                found = file_sha256(shutil.copyfile(file, folder / file.name))
                advance(file.stat().st_size)
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


def _export_decoder(run: Run, output: Path, license: str | None, languages: tuple[str, ...]) -> Path:
    model = run.model()
    plain = plain_decoder(model) if isinstance(model, CoCoMixForCausalLM) else model
    with whole_folder(output) as folder, explained_full_disk(folder):
        plain.save_pretrained(folder)
        run.tokenizer().save_pretrained(folder)
        card = model_card(run, decoder=plain, license=license, languages=languages)
        write_text(folder / "README.md", card)
    logger.info(
        f"the decoder of {run.manifest.name} is in {output}, {plain.num_parameters():,} parameters, with a card"
    )
    return output


_PACKAGE = "cocomix"
_OWN_IMPORT = re.compile(rf"^from ({_PACKAGE}\.[\w.]+) import ", re.MULTILINE)

LICENSE_FILE = "LICENSE.code"  # the licence of these files; that of the weights is another matter


def _flat(module: str) -> str:
    """`cocomix.model.predictor` → `predictor_cocomix`."""
    return f"{module.rpartition('.')[2]}_{_PACKAGE}"


AUTO_MAP = {
    auto: f"{_flat(kind.__module__)}.{kind.__name__}"
    for auto, kind in (("AutoConfig", CoCoMixConfig), ("AutoModelForCausalLM", CoCoMixForCausalLM))
}
"""What `config.json` says about where the classes are."""


def source_files() -> dict[str, str]:
    """File names and texts of the modules that configuration and model need, found by following their imports."""
    modules = [CoCoMixConfig.__module__, CoCoMixForCausalLM.__module__]
    texts: dict[str, str] = {}
    for module in modules:  # grows while it is walked
        source = inspect.getsource(import_module(module))
        modules += [found for found in dict.fromkeys(_OWN_IMPORT.findall(source)) if found not in modules]
        made = (
            f"# {module} of cocomix {version(_PACKAGE)}, written by `cocomix export`; its licence is in {LICENSE_FILE}."
        )
        text = _OWN_IMPORT.sub(lambda found: f"from .{_flat(found[1])} import ", source)
        texts[f"{_flat(module)}.py"] = f"{made}\n{text}"
    assert len(texts) == len(modules), "two modules have one file name"
    return texts


def write_source_files(folder: Path) -> None:
    """Write the files, and the licence they come under, into a folder."""
    for name, text in source_files().items():
        write_text(folder / name, text)
    licence = distribution(_PACKAGE).read_text("licenses/LICENSE")
    assert licence is not None
    write_text(folder / LICENSE_FILE, licence)
