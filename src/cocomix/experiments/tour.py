"""`cocomix demo`: the whole method on this machine's own documentation, stage by stage, each kept when finished."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from cocomix.artifacts import read_json, write_json
from cocomix.concepts import AttributionConfig, DictionaryConfig, FitSettings, TeacherConfig
from cocomix.data import PrepareSettings, prepare
from cocomix.experiments.tour_report import write_demo_report
from cocomix.labelling import fit_on_data, label_data
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import train
from cocomix.training.recipe import RunConfig, load_recipe
from cocomix.training.recipes_folder import recipes_folder

__all__ = ["DemoSizes", "run_demo"]

logger = logging.getLogger(__name__)

ARMS = {"NTP": "demo_ntp.yaml", "CoCoMix": "demo.yaml", "CoCoMix residual": "demo_residual.yaml"}


@dataclass(frozen=True)
class DemoSizes:
    """How much the demo does.

    Attributes:
        text_bytes: UTF-8 bytes of training text.
        vocab_size: entries of the tokenizer.
        block_size: tokens per block.
        layer: block of the teacher whose output gives the concepts.
        dictionary_tokens: hidden states the autoencoder is fitted on.
        teacher_tokens: training tokens of the teacher; `None` = as the recipe says.
        student_tokens: training tokens of each student; likewise.
    """

    text_bytes: int = 2_200_000
    vocab_size: int = 4096
    block_size: int = 128
    layer: int = 1
    dictionary_tokens: int = 300_000
    teacher_tokens: int | None = None
    student_tokens: int | None = None


FAST = DemoSizes(text_bytes=600_000, dictionary_tokens=80_000, teacher_tokens=120_000, student_tokens=80_000)


def run_demo(directory: Path, *, fast: bool = False) -> Path:
    """Run the demo, or what is left of it.

    Args:
        directory: holds `data`, `teacher`, `dictionary`, `labels`, `runs/*` and `report` in the end. Stages whose
            folder is there are not repeated.
        fast: two to three minutes in all, at sizes too small to learn much.

    Returns:
        The report page.
    """
    require_extra("demo", "sae_lens", "matplotlib", "scipy", purpose="the demo")
    sizes = FAST if fast else DemoSizes()
    _refuse_other_sizes(directory, sizes)
    _stage(1, "text", "documentation on this machine, split by document, as blocks of tokens")
    if not (directory / "data").exists():
        settings = PrepareSettings(
            sources=("docs:",),
            vocab_size=sizes.vocab_size,
            block_size=sizes.block_size,
            max_bytes=sizes.text_bytes,
            validation_fraction=0.05,
        )
        prepare(settings, directory / "data")
    _stage(2, "teacher", "a plain decoder, trained on next tokens")
    if not (directory / "teacher").exists():
        train(_recipe(directory, "teacher", "demo_teacher.yaml", sizes.teacher_tokens), directory / "teacher")
    _stage(3, "dictionary", f"a sparse autoencoder on the output of the teacher's block {sizes.layer}")
    teacher = TeacherConfig(model=str(directory / "teacher"), layer=sizes.layer)
    if not (directory / "dictionary").exists():
        settings_of_fit = FitSettings(tokens=sizes.dictionary_tokens)
        fit_on_data(directory / "data", teacher, directory / "dictionary", settings_of_fit)
    _stage(4, "labels", "for every token, the 4 concepts that matter for what comes next")
    if not (directory / "labels").exists():
        dictionary = DictionaryConfig(path=str(directory / "dictionary"))
        made = AttributionConfig(teacher=teacher, dictionary=dictionary)
        label_data(directory / "data", made, directory / "labels", force=True)
    for number, (name, file) in enumerate(ARMS.items(), start=5):
        _stage(number, name, "a student, trained from scratch on the same tokens in the same order")
        output = _run_folder(directory, name)
        if not output.exists():
            train(_recipe(directory, name, file, sizes.student_tokens), output)
    _stage(8, "results", "what the students learnt, measured in float32 on the validation documents")
    return write_demo_report(directory, [_run_folder(directory, name) for name in ARMS])


def _stage(number: int, name: str, what: str) -> None:
    logger.info(f"\n[{number}/8] {name}: {what}")


def _refuse_other_sizes(directory: Path, sizes: DemoSizes) -> None:
    """Stages of a fast demo must not be mixed with those of a full one."""
    record = directory / "demo.json"
    if record.exists():
        if read_json(record) != asdict(sizes):
            raise CoCoMixError(f"{directory} holds a demo of other sizes (--fast or not); remove it or name another.")
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CoCoMixError(f"cannot write to {directory}: {error.strerror}; name another folder.") from error
    write_json(record, asdict(sizes))


def _recipe(directory: Path, name: str, file: str, tokens: int | None) -> RunConfig:
    overrides = [f"name={json.dumps(name)}"]
    overrides += [f"{part}={json.dumps(str(directory / part))}" for part in ("data", "labels")]
    if tokens is not None:
        overrides.append(f"tokens={tokens}")
    return load_recipe(recipes_folder() / file, overrides)


def _run_folder(directory: Path, name: str) -> Path:
    return directory / "runs" / name.lower().replace(" ", "_")
