"""The model that a recipe trains: its configuration, cost and first weights, new or those of `model.pretrained`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.data import Tokens, tokenizer_fingerprint
from cocomix.labelling import Labels
from cocomix.model import Accounting, CoCoMixConfig, account
from cocomix.model.accounting import build_model, matched_config, plain_config
from cocomix.model.backbone import backbone_of
from cocomix.model.configuration import backbone_config
from cocomix.model.from_pretrained import check_same_decoder, load_backbone_weights
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm, load_tokenizer
from cocomix.training.objectives.ahead import decoder_config
from cocomix.training.online import OnlineLabels
from cocomix.training.recipe import MODEL_ARGUMENTS, RunConfig

_SIZES = ("num_concepts", "concept_topk", "teacher_hidden_size")  # which may follow from labels and teacher


@dataclass(frozen=True)
class Plan:
    """What a recipe amounts to, without training it.

    Attributes:
        config: of the model.
        accounting: parameters and FLOPs per token, attention at the data's block size included.
        block_size: tokens per block.
        train_blocks: blocks of the training split; `None` without data.
    """

    config: PreTrainedConfig
    accounting: Accounting
    block_size: int
    train_blocks: int | None


def plan_run(
    recipe: RunConfig,
    data: Tokens | None = None,
    labels: Labels | OnlineLabels | None = None,
    teacher_hidden_size: int | None = None,
) -> Plan:
    """Check a recipe and count its model's cost, on the meta device; refused where its parts do not fit together.

    Args:
        data: the prepared data of the recipe; without it the recipe must give every size itself.
        labels: its labels, if there are any.
        teacher_hidden_size: of a teacher that runs while training.
    """
    config = _model_config(recipe, data, None if labels is None else labels.num_concepts, teacher_hidden_size)
    if data is not None:
        _check_pretrained(recipe, config, data)
    block_size = int(config.max_position_embeddings) if data is None else data.manifest.block_size
    try:
        with torch.device("meta"):
            accounting = account(build_model(config, recipe.model.attn_implementation), block_size)
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, CoCoMixError):
            raise
        raise CoCoMixError(f"model: {' '.join(str(error).split())}") from error
    train = None if data is None else data.manifest.splits.get("train")
    return Plan(config, accounting, block_size, None if train is None else train.blocks)


def build_student(recipe: RunConfig, config: PreTrainedConfig) -> PreTrainedModel:
    """The model a run starts with: new, or with `model.pretrained`'s weights under new concept layers."""
    model = build_model(config, recipe.model.attn_implementation)
    if recipe.model.pretrained is not None:
        load_backbone_weights(model, load_causal_lm(recipe.model.pretrained, revision=recipe.model.revision))
    return model


def pretrained_config(name: str, revision: str | None, field: str) -> PreTrainedConfig:
    """The configuration of a model on the hub, in a folder or in a GGUF file, which a recipe names in `field`."""
    source, options = Path(name), {} if revision is None else {"revision": revision}
    if source.suffix == ".gguf":
        name, options = str(source.parent), {"gguf_file": source.name}
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CoCoMixError(f"{field} {str(source)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return config


def _model_config(
    recipe: RunConfig, data: Tokens | None, label_concepts: int | None, teacher_hidden_size: int | None
) -> PreTrainedConfig:
    """A `CoCoMixConfig`, or the plain (possibly widened) decoder's for `objective: ntp` without `bigram_rows`."""
    model, backbone = recipe.model, _backbone(recipe, data)
    backbone_of(backbone)
    if recipe.objective == "ntp" and recipe.baseline is None:
        return plain_config(backbone, model.bigram_rows, model.head_chunk_size)
    given = {name: getattr(model, name) for name in MODEL_ARGUMENTS if name not in _SIZES}
    given |= {"backbone": backbone, "concept_loss_weight": model.concept_loss_weight.peak}
    student = CoCoMixConfig(**given, **_sizes(recipe, label_concepts, teacher_hidden_size))
    block_size = None if data is None else data.manifest.block_size
    return student if recipe.baseline is None else matched_config(student, recipe.baseline, block_size)


def _sizes(recipe: RunConfig, label_concepts: int | None, teacher_hidden_size: int | None) -> dict[str, Any]:
    """The sizes of what the student predicts, as far as it, or the model a baseline is matched to, predicts it."""
    model = recipe.model
    if recipe.predicts_hidden:
        if model.teacher_hidden_size is None and teacher_hidden_size is None:
            raise CoCoMixError("model.teacher_hidden_size is needed where the teacher is not loaded; set it.")
        if teacher_hidden_size is not None and model.teacher_hidden_size not in (None, teacher_hidden_size):
            raise CoCoMixError(
                f"model.teacher_hidden_size is {model.teacher_hidden_size} but the teacher's hidden states are "
                f"{teacher_hidden_size} wide; remove model.teacher_hidden_size or use another teacher."
            )
        return {"teacher_hidden_size": teacher_hidden_size or model.teacher_hidden_size}
    num_concepts = model.num_concepts or label_concepts
    if num_concepts is None:
        matched_to_itself = model.form.predicts or model.form.widened(model)  # else no concepts are counted
        if not recipe.has_concepts and (recipe.baseline is None or not matched_to_itself):
            return {}
        raise CoCoMixError("model.num_concepts is needed when no labels are given; set it to the dictionary's size.")
    if recipe.has_concepts and label_concepts is not None and label_concepts != num_concepts:
        raise CoCoMixError(
            f"model.num_concepts is {num_concepts} but the labels' dictionary has {label_concepts} concepts; "
            "remove model.num_concepts or use other labels."
        )
    return {"num_concepts": num_concepts, "concept_topk": model.concept_topk}


def _backbone(recipe: RunConfig, data: Tokens | None) -> PreTrainedConfig:
    """The decoder's configuration: what the recipe says, filled up from the data but for pretrained sizes."""
    model = recipe.model
    where = "backbone" if model.pretrained is None or model.backbone is not None else "pretrained"
    source, fixed = getattr(model, where), model.pretrained is not None
    if isinstance(source, str):
        values: dict[str, Any] = pretrained_config(source, model.revision, f"model.{where}").to_dict()
    else:
        values = dict(source)
    if data is not None:
        read = data.manifest
        positions = "n_positions" if values.get("model_type") == "gpt2" else "max_position_embeddings"
        shorter = "prepare shorter blocks" if fixed else "raise it or prepare shorter blocks"
        own_tokenizer = "prepare the data with its tokenizer" if fixed else "raise it or leave it out"
        for field, size, what, remedy in (
            ("vocab_size", read.vocab_size, "the tokenizer has", own_tokenizer),
            (positions, read.block_size, "the data's blocks have", shorter),
        ):
            if (given := values.setdefault(field, size)) < size:
                raise CoCoMixError(f"model.{where}.{field} is {given} but {what} {size} tokens; {remedy}.")
        begin = read.eos_token_id if read.bos_token_id is None else read.bos_token_id
        values.update(bos_token_id=begin, eos_token_id=read.eos_token_id, pad_token_id=None)
    return backbone_config(values)


def _check_pretrained(recipe: RunConfig, config: PreTrainedConfig, data: Tokens) -> None:
    """Refuse `model.pretrained` where its weights cannot go into the model, or read other tokens than the data's."""
    name, revision = recipe.model.pretrained, recipe.model.revision
    if name is None:
        return
    try:
        tokenizer = tokenizer_fingerprint(load_tokenizer(name, revision))
    except CoCoMixError:  # without one, sizes are all there is
        tokenizer = data.manifest.tokenizer_fingerprint
    if tokenizer != data.manifest.tokenizer_fingerprint:
        raise CoCoMixError(
            f"model.pretrained {name} reads another tokenizer than the one {data.path} was prepared with "
            f"({data.manifest.tokenizer_name}); prepare the data with --tokenizer {name}."
        )
    check_same_decoder(decoder_config(config), pretrained_config(name, revision, "model.pretrained"), name)
