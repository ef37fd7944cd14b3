"""`manifest.json` of a finished run."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.remote import shown
from cocomix.data import MixedData, StreamedData, Tokens
from cocomix.model import CoCoMixConfig
from cocomix.training.arguments import epoch_blocks
from cocomix.training.corpora import StoredLabels
from cocomix.training.distillation import Teaching
from cocomix.training.dry_run import Plan
from cocomix.training.order import MixtureOrder
from cocomix.training.recipe import RunConfig, StreamConfig
from cocomix.training.trainer import CoCoMixTrainer

__all__ = ["run_manifest"]

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}


def run_manifest(
    recipe: RunConfig,
    output: Path,
    folder: Path,
    plan: Plan,
    data: Tokens,
    labels: StoredLabels | None,
    teaching: Teaching,
    trainer: CoCoMixTrainer,
    final: dict[str, float],
) -> dict[str, Any]:
    """What a comparison needs to know of a finished run, and the hashes of its files.

    Args:
        recipe: what was asked for.
        output: the run folder to be.
        folder: where it is now, with everything in it but its manifest.
        plan: model and cost.
        data: what it was trained on.
        labels: with which labels.
        teaching: what a teacher added.
        trainer: after training.
        final: the last evaluation.
    """
    arguments, online = trainer.args, trainer.online_labels
    dtype = _DTYPES[trainer.accelerator.mixed_precision]
    return {
        "format_version": 1,
        "kind": "run",
        "cocomix_version": version("cocomix"),
        "name": recipe.name or output.name,
        "objective": recipe.objective,
        "arm": recipe.arm,
        "mixing": plan.config.mixing if isinstance(plan.config, CoCoMixConfig) else None,
        "data": {
            "path": " + ".join(map(shown, recipe.data_folders)),
            "fingerprint": data.manifest.fingerprint,
            "tokenizer_fingerprint": data.manifest.tokenizer_fingerprint,
            "block_size": data.manifest.block_size,
            **_mixture(recipe, data, trainer),
            **_stream(recipe, data),
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
        "teacher_flops_per_token": teaching.flops_per_token
        + (0.0 if online is None else online.flops_per_token(plan.block_size)),
        "learning_rate": arguments.learning_rate,
        "concept_loss_weight": _concept_loss_weight(plan.config),
        "tokens": trainer.tokens_seen(trainer.state.global_step),
        "steps": trainer.state.global_step,
        "seconds": round(trainer.clock.seconds, 3),
        "training_dtype": dtype,
        "evaluation_dtype": dtype,
        "evaluation_blocks": len(trainer.eval_dataset),
        "seed": arguments.seed,
        "device": str(arguments.device.type),
        "final": {name: value for name, value in final.items() if name.startswith("eval_")},
        "skipped_steps": trainer.skipped_steps,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if _is_kept(path)},
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
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


def _stream(recipe: RunConfig, data: Tokens) -> dict[str, Any]:
    """Of a stream: where it is, how large, and the fingerprint of what is held out; nothing for other data."""
    if not isinstance(data, StreamedData):
        return {}
    assert isinstance(recipe.data, StreamConfig)
    sizes = {"shards": len(data.stream_shards), "documents": data.documents, "lanes": data.lanes}
    return {"stream": {"patterns": list(recipe.data.stream), **sizes, "heldout": data.heldout.manifest.fingerprint}}


def _drawn(trainer: CoCoMixTrainer) -> list[int]:
    """Training blocks from each corpus of a mixture."""
    order, blocks_of_split = trainer.order, len(trainer.train_dataset)
    assert isinstance(order, MixtureOrder)
    blocks = trainer.tokens_seen(trainer.state.global_step) // len(trainer.train_dataset[0]["input_ids"])
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


def _is_kept(path: Path) -> bool:
    """Whether a file is the run's for good: curves hold seconds, and later verbs write results beside them."""
    return path.is_file() and path.suffix in (".safetensors", ".json", ".yaml", ".py", ".txt")


def _concept_loss_weight(config: PreTrainedConfig) -> float | None:
    """λ of a model that predicts something beside tokens."""
    predicts = isinstance(config, CoCoMixConfig) and config.mixing != "pause"
    return float(config.concept_loss_weight) if predicts else None
