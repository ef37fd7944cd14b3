"""From a recipe to the configuration of the model it trains."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import matched_config, plain_config
from cocomix.model.backbone import backbone_of
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.pretrained import pretrained_config
from cocomix.training.recipe import MODEL_ARGUMENTS, RunConfig

_SIZES = ("num_concepts", "concept_topk", "teacher_hidden_size")  # which may follow from labels and teacher


class Vocabulary:
    """What the model must know of the data.

    Args:
        size: number of token ids.
        eos_token_id: the end-of-document token.
        block_size: tokens per block; the model's context is at least that.
        bos_token_id: what every block begins with; `None` where that is text.
    """

    def __init__(self, size: int, eos_token_id: int, block_size: int, bos_token_id: int | None = None) -> None:
        self.size = size
        self.eos_token_id = eos_token_id
        self.block_size = block_size
        self.bos_token_id = bos_token_id


def model_config(
    config: RunConfig,
    vocabulary: Vocabulary | None = None,
    label_concepts: int | None = None,
    teacher_hidden_size: int | None = None,
) -> PreTrainedConfig:
    """The configuration of the model a recipe describes.

    Args:
        vocabulary: the data's; sizes the recipe leaves open are taken from it. `None` where they are not there yet.
        label_concepts: number of concepts of the labels, if there are any.
        teacher_hidden_size: of a teacher that runs while training.

    Returns:
        A `CoCoMixConfig`, or the plain (possibly widened) decoder's config for `objective: ntp` without `bigram_rows`.

    Raises:
        CoCoMixError: recipe, data and labels do not fit together.
    """
    backbone = _backbone(config, vocabulary)
    backbone_of(backbone)
    if config.objective == "ntp" and config.baseline is None:
        return plain_config(backbone, config.model.bigram_rows, config.model.head_chunk_size)
    given = {name: getattr(config.model, name) for name in MODEL_ARGUMENTS if name not in _SIZES}
    given |= {"backbone": backbone, "concept_loss_weight": config.model.concept_loss_weight.peak}
    student = CoCoMixConfig(**given, **_sizes(config, label_concepts, teacher_hidden_size))
    block_size = None if vocabulary is None else vocabulary.block_size
    return student if config.baseline is None else matched_config(student, config.baseline, block_size)


def _sizes(config: RunConfig, label_concepts: int | None, teacher_hidden_size: int | None) -> dict[str, Any]:
    """The sizes of what the student predicts, as far as it, or the model a baseline is matched to, predicts it."""
    model = config.model
    if config.predicts_hidden:
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
        if not config.has_concepts and (config.baseline is None or not matched_to_itself):
            return {}
        raise CoCoMixError("model.num_concepts is needed when no labels are given; set it to the dictionary's size.")
    if config.has_concepts and label_concepts is not None and label_concepts != num_concepts:
        raise CoCoMixError(
            f"model.num_concepts is {num_concepts} but the labels' dictionary has {label_concepts} concepts; "
            "remove model.num_concepts or use other labels."
        )
    return {"num_concepts": num_concepts, "concept_topk": model.concept_topk}


def _backbone(config: RunConfig, vocabulary: Vocabulary | None) -> PreTrainedConfig:
    """The decoder's configuration: what the recipe says, filled up from the data but for pretrained sizes."""
    model = config.model
    where = "backbone" if model.pretrained is None or model.backbone is not None else "pretrained"
    source = model.backbone if model.backbone is not None else model.pretrained
    assert source is not None  # the recipe has seen to it
    fixed = model.pretrained is not None
    if isinstance(source, str):
        values: dict[str, Any] = pretrained_config(source, model.revision, f"model.{where}").to_dict()
    else:
        values = dict(source)
    if vocabulary is not None:
        if values.setdefault("vocab_size", vocabulary.size) < vocabulary.size:
            remedy = "prepare the data with its tokenizer" if fixed else "raise it or leave it out"
            raise CoCoMixError(
                f"model.{where}.vocab_size is {values['vocab_size']} but the tokenizer has {vocabulary.size} tokens; "
                f"{remedy}."
            )
        positions = "n_positions" if values.get("model_type") == "gpt2" else "max_position_embeddings"
        if values.setdefault(positions, vocabulary.block_size) < vocabulary.block_size:
            remedy = "prepare shorter blocks" if fixed else "raise it or prepare shorter blocks"
            raise CoCoMixError(
                f"model.{where}.{positions} is {values[positions]} but the data's blocks have "
                f"{vocabulary.block_size} tokens; {remedy}."
            )
        begin = vocabulary.eos_token_id if vocabulary.bos_token_id is None else vocabulary.bos_token_id
        values.update(bos_token_id=begin, eos_token_id=vocabulary.eos_token_id, pad_token_id=None)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise CoCoMixError("model.backbone has no model_type; add for example model_type: gpt2.")
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError) as error:
        raise CoCoMixError(f"model.backbone: {' '.join(str(error).split())}") from error
