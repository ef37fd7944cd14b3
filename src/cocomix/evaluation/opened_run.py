"""Reading a run folder: what was trained, on what, at which cost, and its validation curve."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cocomix.artifacts.output import partial_path, read_json
from cocomix.artifacts.remote import require_local
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer

__all__ = ["CurvePoint", "Run", "RunManifest"]

_FORMAT_VERSION = 1


class _Part(BaseModel):
    """A part of the manifest; what a later version adds is ignored here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CorpusReference(_Part):
    """One corpus of a mixture: its folder, the share it was given, and the training blocks drawn from it."""

    path: str
    share: float
    blocks: int


class StreamReference(_Part):
    """The stream a run was trained on: the fingerprint of the data held out from it, which is what evaluations read."""

    heldout: str


class DataReference(_Part):
    """The prepared data a run was trained and validated on; of a mixture, with its corpora; of a stream, held out."""

    path: str
    fingerprint: str
    tokenizer_fingerprint: str
    block_size: int
    mixture: tuple[CorpusReference, ...] | None = None
    stream: StreamReference | None = None

    @property
    def folder_fingerprint(self) -> str:
        """Of what lies at `path`: of a stream, what is held out."""
        return self.fingerprint if self.stream is None else self.stream.heldout


class LabelReference(_Part):
    """The labels a run was trained with."""

    path: str
    fingerprint: str


class OnlineLabelReference(_Part):
    """Labels that were made while the run trained: fingerprints of them, of the teacher and of its dictionary."""

    fingerprint: str
    teacher: str
    dictionary: str


class TeachingReference(_Part):
    """What a run was distilled from: stored distributions, or (no path) a teacher that ran while training."""

    path: str | None = None
    fingerprint: str | None = None


class ParameterCounts(_Part):
    """Parameters, all and active."""

    total: int
    active: int


class TokenFlops(_Part):
    """FLOPs per token."""

    forward: float
    training: float


class FinalMetrics(_Part):
    """The last evaluation of a run, nats per token."""

    eval_loss: float = Field(ge=0, lt=700)


class RunManifest(_Part):
    """`manifest.json` of a run: what it is and what it cost.

    `seconds` is the training wall clock with evaluation left out (labelling is in it where `online_labels` is given),
    `tokens` the training tokens seen,
    `evaluation_blocks` the validation blocks its evaluations read. `teacher_flops_per_token` is what a teacher spent
    inside training (online labels, distillation). With `document_masks`, documents packed into one block do not see
    each other. Runs of one name and different seeds are one arm of a comparison.
    """

    format_version: int
    kind: Literal["run"]
    name: str
    objective: str
    arm: str | None = None
    mixing: str | None
    data: DataReference
    document_masks: bool = False
    labels: LabelReference | None
    online_labels: OnlineLabelReference | None = None
    teaching: TeachingReference | None = None
    parameters: ParameterCounts
    flops_per_token: TokenFlops
    teacher_flops_per_token: float | None = None
    learning_rate: float | None = None
    concept_loss_weight: float | None = None
    tokens: int = Field(gt=0)
    steps: int = Field(gt=0)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    training_dtype: str
    evaluation_dtype: str
    evaluation_blocks: int
    seed: int
    device: str
    final: FinalMetrics


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation during training.

    Attributes:
        tokens: training tokens seen.
        seconds: training wall clock so far, evaluation left out.
        flops: training FLOPs so far.
        loss: validation loss, nats per token.
    """

    tokens: int
    seconds: float
    flops: float
    loss: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        manifest: what it is.
        curve: its evaluations, by rising token count; at least one.
    """

    path: Path
    manifest: RunManifest
    curve: tuple[CurvePoint, ...]

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Read a run folder.

        Raises:
            CoCoMixError: it is missing, unfinished, no run, of another format, or damaged (file and line named).
        """
        path = Path(path)
        _refuse_unfinished(path)
        file = path / "manifest.json"
        if not file.is_file():
            raise CoCoMixError(
                f"{path} is not a run: it has no manifest.json; pass the folder that `cocomix train` wrote."
            )
        manifest = _read_manifest(file)
        return cls(path, manifest, _read_curve(path / "metrics.jsonl"))

    @property
    def perplexity(self) -> float:
        """Perplexity of the final validation loss."""
        return math.exp(self.manifest.final.eval_loss)

    def model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Load the trained model, in evaluation mode, on the CPU.

        Raises:
            CoCoMixError: the folder holds no model that can be read.
        """
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (
            Exception
        ) as error:  # a damaged configuration or weights can be wrong in as many ways as they have fields
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise CoCoMixError(f"the model in {self.path} cannot be loaded ({reason}); train the run again.") from error
        model.eval()
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer saved with the model.

        Raises:
            CoCoMixError: the folder holds no tokenizer that can be read.
        """
        return load_tokenizer(str(self.path))


def _refuse_unfinished(path: Path) -> None:
    """Say that a run is still going on or was cut off, and how to go on."""
    require_local(path, "a run that is read")
    if path.name.endswith(".partial") and path.is_dir():
        finished = path.with_name(path.name.removesuffix(".partial"))
    elif not path.exists() and partial_path(path).is_dir():
        finished = path
    elif not path.is_dir():
        raise CoCoMixError(
            f"{path} does not exist or is not a folder; pass one of `cocomix train` (`cocomix runs` lists them)."
        )
    else:
        return
    raise CoCoMixError(
        f"the run {finished.name} is unfinished (only {partial_path(finished)} exists); wait for it, or continue it "
        f"with the same command that started it: cocomix train RECIPE --output {finished}."
    )


def _read_manifest(file: Path) -> RunManifest:
    values = read_json(file)
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind != "run":
        raise CoCoMixError(f"{file} does not describe a run; pass a folder that `cocomix train` wrote.")
    if values.get("format_version") != _FORMAT_VERSION:
        raise CoCoMixError(
            f"{file} has format version {values.get('format_version')} but this cocomix reads version "
            f"{_FORMAT_VERSION}; use the cocomix that wrote it, or train the run again."
        )
    try:
        return RunManifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CoCoMixError(f"{file} is damaged at {where!r} ({first['msg']}); train the run again.") from error


def _read_curve(file: Path) -> tuple[CurvePoint, ...]:
    """The evaluation rows of `metrics.jsonl`; of rows with the same token count (a resumed run's) the last one."""
    points: dict[int, CurvePoint] = {}
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    point = _curve_point(line, f"{file}:{number}")
                    if point is not None:
                        points[point.tokens] = point
    except FileNotFoundError:
        raise CoCoMixError(f"{file} does not exist; the run is incomplete, train it again.") from None
    except UnicodeDecodeError as error:
        raise CoCoMixError(f"{file} is not UTF-8 text ({error.reason}); restore it or train the run again.") from error
    if not points:
        raise CoCoMixError(
            f"{file} holds no evaluation (no line has eval_loss); train the run with evaluation switched on."
        )
    return tuple(points[tokens] for tokens in sorted(points))


def _curve_point(line: str, where: str) -> CurvePoint | None:
    """One line of `metrics.jsonl`; `None` for a training row."""
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise CoCoMixError(
            f"{where}: not valid JSON ({error.msg}); restore the file or train the run again."
        ) from error
    if not isinstance(row, dict):
        raise CoCoMixError(f"{where}: not a JSON object; restore the file or train the run again.")
    if "eval_loss" not in row:
        return None
    values: dict[str, float] = {}
    for key in ("tokens", "seconds", "flops", "eval_loss"):
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CoCoMixError(
                f"{where}: {key} is {value!r}, not a finite number; restore the file or train the run again."
            )
        values[key] = value
    return CurvePoint(int(values["tokens"]), values["seconds"], values["flops"], values["eval_loss"])
