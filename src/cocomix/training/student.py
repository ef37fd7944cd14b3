"""From a recipe to the configuration of the model it trains."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from cocomix.config import RunConfig
from cocomix.errors import CoCoMixError
from cocomix.modeling import CoCoMixConfig
from cocomix.modeling.accounting import matched_config
from cocomix.modeling.backbone import backbone_of

__all__ = ["Vocabulary", "model_config"]


class Vocabulary:
    """What the model must know of the data.

    Args:
        size: number of token ids.
        eos_token_id: the end-of-document token.
        block_size: tokens per block; the model's context is at least that.
    """

    def __init__(self, size: int, eos_token_id: int, block_size: int) -> None:
        self.size = size
        self.eos_token_id = eos_token_id
        self.block_size = block_size


def model_config(
    config: RunConfig, vocabulary: Vocabulary | None = None, label_concepts: int | None = None
) -> PreTrainedConfig:
    """The configuration of the model a recipe describes.

    Args:
        config: the recipe.
        vocabulary: the data's; sizes the recipe leaves open are taken from it. `None` in a dry run without data.
        label_concepts: number of concepts of the labels, if there are any.

    Returns:
        A `CoCoMixConfig`, or the plain (possibly widened) decoder's config for `objective: ntp`.

    Raises:
        CoCoMixError: recipe, data and labels do not fit together.
    """
    backbone = _backbone(config.model.backbone, vocabulary)
    backbone_of(backbone)
    plain = config.objective == "ntp" and config.baseline is None
    if plain:
        return backbone
    num_concepts = config.model.num_concepts or label_concepts
    if num_concepts is None:
        raise CoCoMixError("model.num_concepts is needed when no labels are given; set it to the dictionary's size.")
    if config.objective == "cocomix" and label_concepts is not None and label_concepts != num_concepts:
        raise CoCoMixError(
            f"model.num_concepts is {num_concepts} but the labels' dictionary has {label_concepts} concepts; "
            "remove model.num_concepts or use other labels."
        )
    student = CoCoMixConfig(
        backbone=backbone,
        insert_layer=config.model.insert_layer,
        num_concepts=num_concepts,
        concept_topk=config.model.concept_topk,
        concept_loss_weight=config.model.concept_loss_weight,
        mixing=config.model.mixing,
        head_chunk_size=config.model.head_chunk_size,
    )
    return student if config.objective == "cocomix" else matched_config(student)


def _backbone(source: dict[str, Any] | str, vocabulary: Vocabulary | None) -> PreTrainedConfig:
    if isinstance(source, str):
        try:
            loaded = AutoConfig.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise CoCoMixError(f"model.backbone {source!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        values: dict[str, Any] = loaded.to_dict()
    else:
        values = dict(source)
    if vocabulary is not None:
        if values.setdefault("vocab_size", vocabulary.size) < vocabulary.size:
            raise CoCoMixError(
                f"model.backbone.vocab_size is {values['vocab_size']} but the tokenizer has {vocabulary.size} tokens; "
                "raise it or leave it out."
            )
        positions = "n_positions" if values.get("model_type") == "gpt2" else "max_position_embeddings"
        if values.setdefault(positions, vocabulary.block_size) < vocabulary.block_size:
            raise CoCoMixError(
                f"model.backbone.{positions} is {values[positions]} but the data's blocks have "
                f"{vocabulary.block_size} tokens; raise it or prepare shorter blocks."
            )
        values.update(bos_token_id=vocabulary.eos_token_id, eos_token_id=vocabulary.eos_token_id, pad_token_id=None)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise CoCoMixError("model.backbone has no model_type; add for example model_type: gpt2.")
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError) as error:
        raise CoCoMixError(f"model.backbone: {' '.join(str(error).split())}") from error
