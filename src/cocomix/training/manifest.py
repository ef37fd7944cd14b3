"""`manifest.json` of a finished run."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedConfig

from cocomix.artifacts import Manifest, shown
from cocomix.data import MixedData, Tokens
from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import count_parameters
from cocomix.training.arguments import epoch_blocks
from cocomix.training.corpora import StoredLabels
from cocomix.training.distillation import Teaching
from cocomix.training.order import MixtureOrder
from cocomix.training.recipe import RunConfig
from cocomix.training.run_plan import Plan
from cocomix.training.trainer import CoCoMixTrainer

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}


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
    """The labels a run was trained with."""

    path: str
    fingerprint: str


class OnlineLabelReference(_Part):
    """Labels that were made while the run trained: how, as in a recipe, and the labeller's fingerprint by its parts."""

    fingerprint: str
    labels: dict[str, Any]
    labeller: dict[str, str]


class TeachingReference(_Part):
    """What a run was distilled from: stored distributions, or (no path) a teacher that ran while training."""

    path: str | None = None
    fingerprint: str | None = None


class ParameterCounts(_Part):
    """Parameters, all and active."""

    total: int
    active: int


class ExtraFlops(_Part):
    """FLOPs per training token beside the model's own, up to so many training tokens: a teacher's, or a loss's head's.

    Below 0 where they are saved; `parameters` are those of the head, which is not part of the finished model.
    """

    per_token: float
    tokens: int
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
    `tokens` the training tokens seen,
    `evaluation_blocks` the validation blocks its evaluations read. `teacher_flops_per_token` is what a teacher spent
    inside training (online labels, distillation), averaged over all training tokens; `extra_flops` says of each
    objective up to which token. `weights` has the weight of each objective as in a recipe, `labels_until` the step,
    counted from 0, from which no concept labels were read or made. With `document_masks`, documents packed into one
    block do not see each other. Runs of one name and different seeds are one arm of a comparison.
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

    def contents(self) -> Any:
        """The model alone: neither its name nor its place nor what was recorded on the way makes it another run."""
        return {name: entry.sha256 for name, entry in self.files.items() if is_model_file(name)}


def is_model_file(name: str) -> bool:
    """Whether a run's file is its weights or its configuration."""
    return name.endswith(".safetensors") or name == "config.json"


def run_manifest(
    recipe: RunConfig,
    output: Path,
    plan: Plan,
    data: Tokens,
    labels: StoredLabels | None,
    teaching: Teaching,
    trainer: CoCoMixTrainer,
    final: dict[str, float],
    recipe_fingerprint: str | None,
) -> RunManifest:
    """What a comparison needs to know of a finished run.

    Args:
        recipe: what was asked for.
        output: the run folder to be.
        plan: model and cost.
        data: what it was trained on.
        labels: with which labels.
        teaching: what a teacher added.
        trainer: after training.
        final: the last evaluation.
        recipe_fingerprint: of the recipe as it was written.
    """
    arguments, online = trainer.args, trainer.online_labels
    tokens = trainer.tokens_seen(trainer.state.global_step)
    extra = {
        one.name: {
            "per_token": flops,
            "tokens": trainer.tokens_seen(one.weight.steps(trainer.total_steps)),
            "parameters": count_parameters(trainer.heads[one.name]) if one.name in trainer.heads else 0,
        }
        for one in trainer.objectives
        if (flops := one.extra_flops_per_token(plan.config)) != 0
    }
    dtype = _DTYPES[trainer.accelerator.mixed_precision]
    values = {
        "made_from": _made_from(data, labels, teaching),
        "name": recipe.name or output.name,
        "recipe_fingerprint": recipe_fingerprint,
        "objective": recipe.objective,
        "arm": recipe.arm_with(teaching.word),
        "mixing": plan.config.mixing if isinstance(plan.config, CoCoMixConfig) else None,
        "data": {
            "path": " + ".join(map(shown, recipe.data_folders)),
            "fingerprint": data.manifest.fingerprint,
            "tokenizer_fingerprint": data.manifest.tokenizer_fingerprint,
            "block_size": data.manifest.block_size,
            "first_blocks": recipe.first_blocks,
            **_mixture(recipe, data, trainer),
        },
        "pretrained": _pretrained(recipe),
        "document_masks": recipe.document_masks,
        "labels": None if labels is None else _labels(recipe, labels),
        "online_labels": None if online is None else online.reference(data),
        "teaching": teaching.reference,
        "parameters": {
            "total": plan.accounting.total_parameters,
            "active": plan.accounting.active_parameters,
        },
        "flops_per_token": {
            "forward": plan.accounting.forward_flops_per_token,
            "training": plan.accounting.training_flops_per_token,
        },
        "teacher_flops_per_token": sum(e["per_token"] * e["tokens"] for e in extra.values()) / tokens,
        "extra_flops": extra,
        "weights": {one.name: one.weight.model_dump(mode="json") for one in trainer.objectives},
        "labels_until": trainer.labels_until() if recipe.has_concepts else None,
        "learning_rate": arguments.learning_rate,
        "concept_loss_weight": _concept_loss_weight(plan.config),
        "tokens": tokens,
        "steps": trainer.state.global_step,
        "seconds": round(trainer.clock.seconds, 3),
        "training_dtype": dtype,
        "evaluation_dtype": dtype,
        "evaluation_blocks": len(trainer.eval_dataset),
        "seed": arguments.seed,
        "device": str(arguments.device.type),
        "final": {name: value for name, value in final.items() if name.startswith("eval_")},
        "skipped_steps": trainer.skipped_steps,
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
    }
    return RunManifest.model_validate(values)


def _made_from(data: Tokens, labels: StoredLabels | None, teaching: Teaching) -> dict[str, str]:
    found = {"tokens": data.manifest.fingerprint, "tokenizer": data.manifest.tokenizer_fingerprint}
    if labels is not None:
        found["labels"] = labels.fingerprint
    taught = teaching.reference or {}
    return found | {
        role: taught[key] for role, key in (("probabilities", "fingerprint"), ("teacher", "teacher")) if key in taught
    }


def _mixture(recipe: RunConfig, data: Tokens, trainer: CoCoMixTrainer) -> dict[str, Any]:
    """Of each corpus of a mixture: where it is, the share asked for, and the blocks drawn; nothing for one corpus."""
    if not isinstance(data, MixedData):
        return {}
    folders = recipe.label_folders or (None,) * len(data.parts)
    drawn = _drawn(trainer)
    return {
        "mixture": [
            {
                "path": shown(path),
                "labels": None if labels is None else shown(labels),
                "share": share,
                "blocks": blocks,
            }
            for path, labels, share, blocks in zip(recipe.data_folders, folders, data.shares, drawn, strict=True)
        ]
    }


def _drawn(trainer: CoCoMixTrainer) -> list[int]:
    """Training blocks from each corpus of a mixture."""
    order, blocks_of_split = trainer.order, len(trainer.train_dataset)
    assert isinstance(order, MixtureOrder)
    blocks = trainer.tokens_seen(trainer.state.global_step) // trainer.block_size
    full_epochs, rest = divmod(blocks, in_epoch := epoch_blocks(trainer.args, blocks_of_split))
    lengths = [*[in_epoch] * full_epochs, rest]
    starts = [epoch * order.size for epoch in range(len(lengths))]
    of_epochs = [order.taken(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return [sum(counts) for counts in zip(*of_epochs, strict=True)]


def _pretrained(recipe: RunConfig) -> dict[str, str | None] | None:
    """Whose weights the run started from."""
    if recipe.model.pretrained is None:
        return None
    return {"model": recipe.model.pretrained, "revision": recipe.model.revision}


def _labels(recipe: RunConfig, labels: StoredLabels) -> dict[str, str]:
    return {"path": " + ".join(map(shown, recipe.label_folders)), "fingerprint": labels.fingerprint}


def _concept_loss_weight(config: PreTrainedConfig) -> float | None:
    """λ of a model that predicts something beside tokens."""
    predicts = isinstance(config, CoCoMixConfig) and config.form.predicts
    return float(config.concept_loss_weight) if predicts else None
