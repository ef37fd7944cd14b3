"""A run folder: what was trained, on what, at which cost, and its validation curve."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cocomix.artifacts import Artifact, Findings, Manifest, require_local
from cocomix.data import Tokens
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from cocomix.runtime.section import describe_validation_error
from cocomix.training.checkpoints import Checkpoint, checkpoints_in
from cocomix.training.recipe import load_recipe
from cocomix.training.recipe_file import made_anew

_DISTILLATIONS = frozenset(("kd", "uld", "alm"))  # objectives that a recipe's `distillation` adds


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
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
    loss: float = Field(validation_alias="eval_loss")


_ROW, _POINT = TypeAdapter(dict[str, Any]), TypeAdapter(CurvePoint)


class _Part(BaseModel):
    """A part of the manifest; what else is recorded for people to read is kept, too."""

    model_config = ConfigDict(frozen=True, extra="allow")


class CorpusReference(_Part):
    """One corpus of a mixture: its folder and labels, the share it was given, the training blocks drawn from it."""

    path: str
    labels: str | None = None
    share: float
    blocks: int


class DataReference(_Part):
    """The prepared data a run was trained and validated on; of a mixture, with its corpora."""

    path: str
    fingerprint: str
    tokenizer_fingerprint: str
    block_size: int
    first_blocks: int | None = None
    mixture: tuple[CorpusReference, ...] | None = None


class LabelReference(_Part):
    """The labels a run was trained with, and the training tokens of each corpus whose labels it read."""

    path: str
    fingerprint: str
    tokens: tuple[int, ...] | None = None


class OnlineLabelReference(_Part):
    """Labels that were made while the run trained: how, as in a recipe, and the labeller's fingerprint by its parts.

    `fit_flops` are those of its first pass over a sample, if it had one.
    """

    fingerprint: str
    labels: dict[str, Any]
    labeller: dict[str, str]
    fit_flops: float = 0.0


class TeachingReference(_Part):
    """What a run was distilled from: stored distributions, or (no path) a teacher that ran while training.

    `tokens` are the training tokens of each corpus whose stored distributions it read.
    """

    path: str | None = None
    fingerprint: str | None = None
    tokens: tuple[int, ...] | None = None


class ParameterCounts(_Part):
    """Parameters, all and active."""

    total: int
    active: int


class ExtraFlops(_Part):
    """FLOPs per training token beside the model's own, up to so many training tokens: a teacher's, or a loss's head's.

    Below 0 where they are saved; `of_teacher` are those of them that a teacher spends; `parameters` are those of the
    head, which is not part of the finished model.
    """

    per_token: float
    tokens: int
    of_teacher: float = 0.0
    parameters: int = 0


class TokenFlops(_Part):
    """FLOPs per token."""

    forward: float
    training: float


class FinalMetrics(_Part):
    """The last evaluation of a run, nats per token."""

    eval_loss: float = Field(ge=0, lt=700)


class RunManifest(Manifest):
    """`manifest.json` of a run: what it is and what it cost.

    `seconds` is the training wall clock with evaluation left out (labelling is in it where `online_labels` is given),
    `tokens` the training tokens seen, `evaluation_blocks` the validation blocks its evaluations read.
    `teacher_flops_per_token` is what a teacher spent inside training (online labels, distillation), averaged over all
    training tokens; `extra_flops` says of each objective up to which token. `weights` has the weight of each objective
    as in a recipe, `labels_until` is the step, counted from 0, from which no concept labels were read or made. With
    `document_masks`, documents packed into one block do not see each other. Runs of one name and different seeds are
    one arm of a comparison.
    """

    name: str
    recipe_fingerprint: str | None = None
    """Fingerprint of the recipe as it was written (`recipe_file`), by which the same command finds it done."""
    objective: str
    arm: str | None = None
    mixing: str | None
    data: DataReference
    pretrained: dict[str, str | None] | None = None
    document_masks: bool = False
    labels: LabelReference | None
    online_labels: OnlineLabelReference | None = None
    teaching: TeachingReference | None = None
    parameters: ParameterCounts
    flops_per_token: TokenFlops
    teacher_flops_per_token: float | None = None
    extra_flops: dict[str, ExtraFlops] | None = None
    weights: dict[str, Any] = Field(default_factory=dict)
    labels_until: int | None = None
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
    skipped_steps: int = 0
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def training_flops(self) -> float:
        """Of the model and of what its losses compute beside it, by formula, forward and backward; no teacher's."""
        return training_flops(self.flops_per_token.training, self.extra_flops or {}, self.tokens)

    @property
    def next_tokens_alone(self) -> bool:
        """Whether nothing but next tokens was learned: no concepts, no distribution of a teacher, no other loss."""
        return self.plain and not self.weights.keys() & _DISTILLATIONS

    @property
    def plain(self) -> bool:
        """Whether a plain decoder learned the next tokens, with or without a teacher's distribution of them."""
        return self.objective == "ntp" and self.weights.keys() <= {"ntp"} | _DISTILLATIONS

    def contents(self) -> Any:
        """The model alone: neither its name nor its place nor what was recorded on the way makes it another run."""
        return {name: entry.sha256 for name, entry in self.files.items() if is_model_file(name)}


def training_flops(per_token: float, extra: Mapping[str, ExtraFlops], tokens: float) -> float:
    """FLOPs of a run's first training tokens: of the model, and of what its losses compute beside it; no teacher's."""
    beside = ((one.per_token - one.of_teacher) * min(one.tokens, tokens) for one in extra.values())
    return per_token * tokens + sum(beside)


def is_model_file(name: str) -> bool:
    """Whether a run's file is its weights or its configuration."""
    return name.endswith(".safetensors") or name == "config.json"


class Run(Artifact[RunManifest]):
    """A finished run.

    Attributes:
        curve: its evaluations, by rising token count; at least one.
    """

    kind = "run"
    manifest_type = RunManifest
    made_by = "cocomix train"

    curve: tuple[CurvePoint, ...]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a run folder; refused as by `Artifact.open`, or where its `metrics.jsonl` is damaged."""
        require_local(Path(path), "a run that is read")
        run = super().open(path)
        run.curve = _read_curve(run.path / "metrics.jsonl")
        return run

    @classmethod
    def records(cls, name: str) -> bool:
        """Not the curves, which hold seconds, nor what TensorBoard and the profiler wrote."""
        return "/" not in name and name.endswith((".safetensors", ".json", ".yaml", ".py", ".txt"))

    def differing(self, identity: Mapping[str, Any]) -> tuple[str, ...]:
        return (*super().differing(identity), *made_anew(self.manifest.model_dump()))

    def check(self, findings: Findings) -> None:
        """Check the recipe, the model, and data and labels where they are near."""
        with findings.check("recipe", "its fields", self._repair):
            load_recipe(self.path / "recipe.yaml")
        with findings.check("model", "loads, is finite and has as many parameters as recorded", self._repair):
            weights = list(self.model().parameters())
            if sum(weight.numel() for weight in weights) != self.manifest.parameters.total:
                raise CoCoMixError(
                    f"the model in {self.path} has another number of parameters than recorded; {self._repair}."
                )
            if not all(bool(weight.isfinite().all()) for weight in weights):
                raise CoCoMixError(f"the model in {self.path} has weights that are not finite; {self._repair}.")
        data, labels = self.manifest.data, self.manifest.labels
        findings.source("data", data.path, data.fingerprint, lambda: Tokens.open(data.path).manifest.fingerprint)
        if labels is not None:
            path = labels.path
            findings.source("labels", path, labels.fingerprint, lambda: Labels.open(path).manifest.fingerprint)

    @classmethod
    def check_unfinished(cls, folder: Path, findings: Findings) -> None:
        """Check the checkpoints of a run that is not finished."""
        for checkpoint in checkpoints_in(folder / "checkpoints"):
            with findings.check(checkpoint.name, "hashes of all its files", "remove it"):
                Checkpoint.require_whole(checkpoint)

    @property
    def perplexity(self) -> float:
        """Perplexity of the final validation loss."""
        return math.exp(self.manifest.final.eval_loss)

    def model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """Load the trained model, in evaluation mode, on the CPU.

        Raises:
            Damaged: a file of it is not the one that was written.
            CoCoMixError: the folder holds no model that can be read.
        """
        for name in filter(is_model_file, self.manifest.files):
            self.file(name)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # configuration and weights can be damaged in as many ways as they have fields
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise CoCoMixError(f"the model in {self.path} cannot be loaded ({reason}); train the run again.") from error
        model.eval()
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer saved with the model."""
        return load_tokenizer(str(self.path))


def _read_curve(file: Path) -> tuple[CurvePoint, ...]:
    """The evaluation rows of `metrics.jsonl`; of rows with the same token count (a resumed run's) the last one."""
    points: dict[int, CurvePoint] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CoCoMixError(f"{file} does not exist; the run is incomplete, train it again.") from None
    except UnicodeDecodeError as error:
        raise CoCoMixError(f"{file} is not UTF-8 text ({error.reason}); restore it or train the run again.") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = _ROW.validate_json(line) if line.strip() else {}
            if "eval_loss" in row:
                point = _POINT.validate_json(line)
                points[point.tokens] = point
        except ValidationError as error:
            found = describe_validation_error(error)
            raise CoCoMixError(f"{file}:{number}: {found}; restore the file or train the run again.") from error
    if not points:
        raise CoCoMixError(
            f"{file} holds no evaluation (no line has eval_loss); train the run with evaluation switched on."
        )
    return tuple(points[tokens] for tokens in sorted(points))
