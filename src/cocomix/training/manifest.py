"""What `manifest.json` says of a run that has just been trained."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cocomix.artifacts import shown
from cocomix.data import MixedData, Tokens
from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import count_parameters
from cocomix.training.arguments import epoch_blocks
from cocomix.training.corpora import StoredLabels
from cocomix.training.distillation import Teaching
from cocomix.training.objectives import Objective, Schedule
from cocomix.training.opened_run import ExtraFlops, RunManifest
from cocomix.training.order import MixtureOrder
from cocomix.training.recipe import RunConfig
from cocomix.training.student import Plan
from cocomix.training.trainer import CoCoMixTrainer

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}


def run_manifest(
    recipe: RunConfig,
    output: Path,
    plan: Plan,
    data: Tokens,
    labels: StoredLabels | None,
    teaching: Teaching,
    trainer: CoCoMixTrainer,
    extra: dict[str, ExtraFlops],
    final: dict[str, float],
    recipe_fingerprint: str | None,
) -> RunManifest:
    """What a comparison needs to know of a run that is trained, with its `extra_flops` and its last evaluation."""
    arguments, online = trainer.args, trainer.online_labels
    tokens = trainer.tokens_seen(trainer.state.global_step)
    dtype, count, student = _DTYPES[trainer.accelerator.mixed_precision], plan.accounting, plan.config
    mixes = isinstance(student, CoCoMixConfig)
    values = {
        "made_from": _made_from(data, labels, teaching),
        "name": recipe.name or output.name,
        "recipe_fingerprint": recipe_fingerprint,
        "objective": recipe.objective,
        "arm": recipe.arm_with(teaching.word),
        "mixing": student.mixing if mixes else None,
        "data": {
            "path": " + ".join(map(shown, recipe.data_folders)),
            "fingerprint": data.manifest.fingerprint,
            "tokenizer_fingerprint": data.manifest.tokenizer_fingerprint,
            "block_size": data.manifest.block_size,
            "first_blocks": recipe.first_blocks,
            "mixture": _mixture(recipe, data, trainer) if isinstance(data, MixedData) else None,
        },
        "pretrained": recipe.model.pretrained and {"model": recipe.model.pretrained, "revision": recipe.model.revision},
        "document_masks": recipe.document_masks,
        "labels": None
        if labels is None
        else {
            "path": " + ".join(map(shown, recipe.label_folders)),
            "fingerprint": labels.fingerprint,
            "tokens": _drawn(trainer, trainer.read_until("concept_labels")),
        },
        "online_labels": None if online is None else online.reference(data),
        "teaching": teaching.reference
        if teaching.stored is None
        else {**(teaching.reference or {}), "tokens": _drawn(trainer, trainer.read_until("teacher_log_probs"))},
        "parameters": {"total": count.total_parameters, "active": count.active_parameters},
        "flops_per_token": {"forward": count.forward_flops_per_token, "training": count.training_flops_per_token},
        "teacher_flops_per_token": sum(one.of_teacher * one.tokens for one in extra.values()) / tokens,
        "extra_flops": {name: one.model_dump() for name, one in extra.items()},
        "weights": {one.name: one.weight.model_dump(mode="json") for one in trainer.objectives},
        "labels_until": trainer.read_until("concept_labels") if recipe.has_concepts else None,
        "learning_rate": arguments.learning_rate,
        "concept_loss_weight": float(student.concept_loss_weight) if mixes and student.form.predicts else None,
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


def extra_flops(
    objectives: Iterable[Objective], config: PreTrainedConfig, tokens_until: Callable[[Schedule], int]
) -> dict[str, ExtraFlops]:
    """What each objective costs beside the model, by its name; without those that cost nothing.

    Args:
        config: of the model.
        tokens_until: how many training tokens are seen before a weight is 0 for good.
    """
    found: dict[str, ExtraFlops] = {}
    for one in objectives:
        if (flops := one.extra_flops_per_token(config)) != 0:
            with torch.device("meta"):
                head = one.build_head(config)
            found[one.name] = ExtraFlops(
                per_token=flops,
                tokens=tokens_until(one.weight),
                of_teacher=one.teacher_flops,
                parameters=0 if head is None else count_parameters(head),
            )
    return found


def _made_from(data: Tokens, labels: StoredLabels | None, teaching: Teaching) -> dict[str, str]:
    found = {"tokens": data.manifest.fingerprint, "tokenizer": data.manifest.tokenizer_fingerprint}
    if labels is not None:
        found["labels"] = labels.fingerprint
    taught = teaching.reference or {}
    roles = {"fingerprint": "probabilities", "teacher": "teacher"}
    return found | {role: taught[key] for key, role in roles.items() if key in taught}


def _drawn(trainer: CoCoMixTrainer, steps: int) -> list[int]:
    """Training tokens of each corpus in so many steps, or as many as the run had; of one corpus, all of them."""
    tokens = trainer.tokens_seen(min(steps, trainer.state.global_step))
    if not isinstance(order := trainer.order, MixtureOrder):
        return [tokens]
    in_epoch = epoch_blocks(trainer.args, len(trainer.train_dataset))
    full_epochs, rest = divmod(tokens // trainer.block_size, in_epoch)
    lengths = [*[in_epoch] * full_epochs, rest]
    of_epochs = [order.taken(epoch * order.size, epoch * order.size + length) for epoch, length in enumerate(lengths)]
    return [sum(blocks) * trainer.block_size for blocks in zip(*of_epochs, strict=True)]


def _mixture(recipe: RunConfig, data: MixedData, trainer: CoCoMixTrainer) -> list[dict[str, Any]]:
    """Of each corpus: where it is, the share asked for, and the training blocks drawn."""
    drawn = [tokens // trainer.block_size for tokens in _drawn(trainer, trainer.state.global_step)]
    folders = map(shown, recipe.label_folders) if recipe.label_folders else (None,) * len(data.parts)
    rows = zip(map(shown, recipe.data_folders), folders, data.shares, drawn, strict=True)
    return [dict(zip(("path", "labels", "share", "blocks"), row, strict=True)) for row in rows]
