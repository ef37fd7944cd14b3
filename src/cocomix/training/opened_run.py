"""A run folder: what was trained, on what, at which cost, and its validation curve."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cocomix.artifacts import Artifact, Findings, require_local
from cocomix.data import Tokens
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from cocomix.training.checkpoints import Checkpoint, checkpoints_in
from cocomix.training.manifest import RunManifest, is_model_file
from cocomix.training.recipe import load_recipe


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
        """Read a run folder.

        Raises:
            CoCoMixError: as `Artifact.open`; or its `metrics.jsonl` is damaged (the line is named).
        """
        require_local(Path(path), "a run that is read")
        run = super().open(path)
        run.curve = _read_curve(run.path / "metrics.jsonl")
        return run

    @classmethod
    def records(cls, name: str) -> bool:
        """Not the curves, which hold seconds, nor what TensorBoard and the profiler wrote."""
        return "/" not in name and name.endswith((".safetensors", ".json", ".yaml", ".py", ".txt"))

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
            findings.source(
                "labels",
                labels.path,
                labels.fingerprint,
                lambda: Labels.open(labels.path).manifest.fingerprint,
            )

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
