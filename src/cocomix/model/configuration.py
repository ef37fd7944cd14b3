"""The configuration of a CoCoMix model: a Hugging Face decoder's own configuration plus the concept settings."""

import copy
import inspect
from typing import Annotated, Any, Literal, NamedTuple, get_args

from transformers import AutoConfig, PreTrainedConfig

from cocomix.model.mixing import MIXINGS, Mixing
from cocomix.model.predictor import HiddenLoss
from cocomix.runtime.errors import CoCoMixError


class AtLeast(NamedTuple):
    """A lower bound, which recipes check; exported code needs no pydantic for it."""

    ge: int

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "ge": self.ge}


Count = Annotated[int, AtLeast(1)]
Predicted = Literal["concepts", "hidden"]
CompressionInit = Literal["normal", "small", "zero"]
ConceptWeights = Literal["logits", "softmax"]
UpperPositions = Literal["own", "token"]
_OF_BACKBONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def _of_backbone(name: str, meaning: str) -> Any:
    """A property that is the backbone's number of this name."""
    return property(lambda config: int(getattr(config.backbone, name)), doc=meaning)


class CoCoMixConfig(PreTrainedConfig):  # type: ignore[misc]
    """Everything needed to rebuild a `CoCoMixForCausalLM` without further arguments.

    Args:
        backbone: configuration of the decoder that is split in two: a `PreTrainedConfig`, or a dict with its
            `model_type` (see `cocomix.model.backbone.SUPPORTED_BACKBONES`).
        insert_layer: 0-based index l of the block whose *input* predicts and is mixed with the concepts; 0 … L − 1.
            (Paper: 3 for the 69M model, 5 for 386M and 1.38B.)
        num_concepts: C, the number of latents of the teacher's dictionary.
        concept_topk: K_concept, how many concept logits enter the continuous concept vector (paper section 3: 32).
        concept_rank: rank of W_pred, which is then a product U V with V [rank, d_model] and U [C, rank] (our option):
            rank·(d_model + C) parameters in the place of d_model·C. By default W_pred is one matrix.
        concept_loss_weight: λ of Eq. 4 (paper: 0.1).
        mixing: how the concept vector ĉ_t meets the hidden state h_t, a name in `cocomix.model.mixing.MIXINGS`:
            `"interleave"` (the paper's Eq. 3), `"residual"` (our option), `"add"` (Fig. 6e), `"none"` (prediction only,
            Fig. 6d), `"pause"` (pause tokens, Fig. 6f), `"values"` (our option), or the peers `"token_values"`,
            `"plain"`, `"loop"`, `"ponder"` and `"next_concept"`, which read no labels; see MIXING.md.
        prediction: what is predicted at block l. `"concepts"`: concept logits, of which `concept_topk` are compressed.
            `"hidden"`: the teacher's hidden state, by a two-layer MLP, compressed whole (paper Fig. 6b).
        hidden_loss: how a predicted hidden state is compared with the teacher's; only read with `"hidden"`.
        teacher_hidden_size: width of the teacher's hidden states; needed with `"hidden"`.
        compression_init: standard deviation of W_comp at the start: the backbone's `initializer_range` (`"normal"`), a
            tenth of it (`"small"`) or 0 (`"zero"`). The last two are our options.
        concept_weights: by what the compression weighs the rows of the chosen concepts: their `"logits"` (Eq. 3), or a
            `"softmax"` of the chosen logits (our option), whose sum stays 1 however far training spreads the logits.
            `"values"` always takes the softmax; with `"next_concept"` it is of the logits of codes.
        add_mean: only read with `mixing="add"`: whether ĉ_t carries the mean of h_t (method: section 4), so that it is
            added a second time. Without it nothing is added as long as the compression is zero. Decoders with layer
            norms compute the same either way, decoders with RMS norms do not. `False` is our option.
        upper_positions: only read where something is interleaved and the decoder turns queries and keys (rotary
            positions): whether each of a token's two places in the upper half has a position of its own, 2t and 2t + 1
            (`"own"`), or both have the token's, t (`"token"`). Paper and released code have learned positions, which
            are added below the lower half and so are the token's.
        chunk_tokens: k, tokens of a chunk; this and the next two are only read with `mixing="next_concept"`.
        chunk_codes: N, codes of each of its codebooks.
        chunk_blocks: decoder blocks that read the chunks.
        repeats: how often `mixing="loop"` runs the upper half again after its first pass, or the Jacobi iterations of
            `"ponder"`; only read with these.
        bigram_rows: rows of a hashed table of pairs of tokens that adds to the residual stream before every block, with
            any form of mixing, see `BigramTable`; five times the vocabulary is usual. By default there is none.
        head_chunk_size: positions whose concept or vocabulary logits are held at once while training; by default as
            many as the device's memory suggests. Memory and speed depend on it, results only by rounding.
        **kwargs: forwarded to `PreTrainedConfig`. `tie_word_embeddings` and the special token ids default to the
            backbone's. With `use_cache=False` no cache is returned by a call that does not ask for one.

    Raises:
        CoCoMixError: a value is out of range; the message names the field and the remedy.
    """

    model_type = "cocomix"
    sub_configs = {"backbone": AutoConfig}  # noqa: RUF012 - transformers reads this class attribute
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - likewise

    def __init__(
        self,
        backbone: PreTrainedConfig | dict[str, Any] | None = None,
        insert_layer: Annotated[int, AtLeast(0)] = 3,
        num_concepts: Count = 32768,
        concept_topk: Count = 32,
        concept_rank: Count | None = None,
        concept_loss_weight: float = 0.1,
        mixing: str = "interleave",
        prediction: Predicted = "concepts",
        hidden_loss: HiddenLoss = "l2",
        teacher_hidden_size: Count | None = None,
        compression_init: CompressionInit = "normal",
        concept_weights: ConceptWeights = "logits",
        add_mean: bool = True,
        upper_positions: UpperPositions = "own",
        chunk_tokens: Count = 4,
        chunk_codes: Count = 64,
        chunk_blocks: Count = 1,
        repeats: Count = 3,
        bigram_rows: Annotated[int, AtLeast(2)] | None = None,
        head_chunk_size: Count | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _OF_BACKBONE:
            if name in kwargs:
                raise CoCoMixError(f"{name}={kwargs[name]} is a setting of the backbone; give it in backbone.")
        self.backbone = backbone_config(backbone)
        self.insert_layer = insert_layer
        self.num_concepts = num_concepts
        self.concept_topk = concept_topk
        self.concept_rank = concept_rank
        self.concept_loss_weight = concept_loss_weight
        self.mixing = mixing
        self.prediction = prediction
        self.hidden_loss = hidden_loss
        self.teacher_hidden_size = teacher_hidden_size
        self.compression_init = compression_init
        self.concept_weights = concept_weights
        self.add_mean = add_mean
        self.upper_positions = upper_positions
        self.chunk_tokens = chunk_tokens
        self.chunk_codes = chunk_codes
        self.chunk_blocks = chunk_blocks
        self.repeats = repeats
        self.bigram_rows = bigram_rows
        self.head_chunk_size = head_chunk_size
        self._validate_concept_settings()
        self.tie_word_embeddings = bool(kwargs.pop("tie_word_embeddings", self.backbone.tie_word_embeddings))
        self.use_cache = bool(kwargs.pop("use_cache", True))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, name, kwargs.pop(name, getattr(self.backbone, name, None)))
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; settings among `kwargs` (`from_pretrained(…, insert_layer=2)`) are checked.

        A dict for `backbone` replaces the settings that it names. A stored `use_cache` is not read: the Trainer stores
        false with everything that it trained.
        """
        own = (*inspect.signature(cls.__init__).parameters, *_OF_BACKBONE)
        given = {name: kwargs.pop(name) for name in own if name in kwargs}
        if isinstance(given.get("backbone"), dict):
            given["backbone"] = {**config_dict.get("backbone", {}), **given["backbone"]}
        return super().from_dict({**config_dict, "use_cache": True, **given}, **kwargs)

    def _validate_concept_settings(self) -> None:
        layers = self.backbone.num_hidden_layers
        if not 0 <= self.insert_layer < layers:
            raise CoCoMixError(
                f"insert_layer={self.insert_layer} is out of range: the backbone has {layers} blocks, "
                f"so it must be between 0 and {layers - 1}."
            )
        for name in ("num_concepts", "chunk_tokens", "chunk_codes", "chunk_blocks", "repeats"):
            if getattr(self, name) < 1:
                raise CoCoMixError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 1 <= self.concept_topk <= self.num_concepts:
            raise CoCoMixError(
                f"concept_topk={self.concept_topk} must be between 1 and num_concepts={self.num_concepts}."
            )
        largest = min(self.hidden_size, self.num_concepts) - 1
        if self.concept_rank is not None and not 1 <= self.concept_rank <= largest:
            raise CoCoMixError(
                f"concept_rank={self.concept_rank} must be between 1 and {largest}, below hidden_size="
                f"{self.hidden_size} and num_concepts={self.num_concepts}; leave it out for one matrix."
            )
        if self.concept_rank is not None and self.prediction == "hidden":
            raise CoCoMixError(f"concept_rank={self.concept_rank} needs prediction='concepts'; leave it out.")
        if self.concept_weights == "softmax" and self.prediction == "hidden":
            raise CoCoMixError("concept_weights='softmax' needs prediction='concepts'; leave it out.")
        if not 0.0 <= self.concept_loss_weight < float("inf"):
            raise CoCoMixError(f"concept_loss_weight={self.concept_loss_weight} must be a number not below 0.")
        if self.bigram_rows is not None and self.bigram_rows < 2:
            raise CoCoMixError(f"bigram_rows={self.bigram_rows} must be at least 2, or null for no table.")
        if self.head_chunk_size is not None and self.head_chunk_size < 1:
            raise CoCoMixError(f"head_chunk_size={self.head_chunk_size} must be at least 1, or null for the default.")
        for name, allowed in (
            ("mixing", tuple(MIXINGS)),
            ("prediction", get_args(Predicted)),
            ("hidden_loss", get_args(HiddenLoss)),
            ("compression_init", get_args(CompressionInit)),
            ("concept_weights", get_args(ConceptWeights)),
            ("upper_positions", get_args(UpperPositions)),
        ):
            if getattr(self, name) not in allowed:
                raise CoCoMixError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if self.prediction == "hidden" and not self.form.predicts:
            raise CoCoMixError(
                f"mixing={self.mixing!r} predicts nothing; use prediction='concepts' with it, or another mixing."
            )
        if self.prediction == "hidden" and (self.teacher_hidden_size is None or self.teacher_hidden_size < 1):
            raise CoCoMixError(
                f"teacher_hidden_size={self.teacher_hidden_size} must be the width of the teacher's hidden states with "
                "prediction='hidden'."
            )

    @property
    def form(self) -> type[Mixing]:
        """The form of mixing."""
        return MIXINGS[self.mixing]

    @property
    def has_concepts(self) -> bool:
        """Whether concepts are predicted: not with a pause vector, nor where a hidden state is predicted."""
        return self.form.predicts and self.prediction == "concepts"

    @property
    def looks_up(self) -> str | None:
        """The setting by which something is looked up by tokens, so that the model cannot do with `inputs_embeds`."""
        if self.bigram_rows is not None:
            return f"bigram_rows={self.bigram_rows}"
        return f"mixing={self.mixing!r}" if self.form.reads_tokens else None

    @property
    def keeps(self) -> int:
        """Layers of the cache beside the halves': one of a form that `keeps`, and last one of the table of pairs."""
        return int(self.form.keeps) + int(self.bigram_rows is not None)

    @property
    def final_logit_softcapping(self) -> float | None:
        """The backbone's cap of the next token's logits, under the name by which other programs look for it."""
        return getattr(self.backbone, "final_logit_softcapping", None)

    @property
    def positions_per_token(self) -> int:
        """How many positions of the upper half one token takes: 2 when something is interleaved, else 1."""
        return self.form.positions_per_token

    @property
    def passes(self) -> tuple[int, ...]:
        """The same for every time that the upper half is run; see `Mixing.passes`."""
        return self.form.passes(self)

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, the backbone's."""
        return int(self.backbone.vocab_size)

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.backbone.vocab_size = value

    hidden_size = _of_backbone("hidden_size", "d_model.")
    num_hidden_layers = _of_backbone("num_hidden_layers", "L, the number of decoder blocks of both halves together.")
    num_attention_heads = _of_backbone("num_attention_heads", "Attention heads of a block.")
    max_position_embeddings = _of_backbone(
        "max_position_embeddings", "Context length in tokens (the interleaved half sees twice as many positions)."
    )


def backbone_config(backbone: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """Turn a dict with a `model_type` into a config; `None` (what `PreTrainedConfig` itself asks for) is GPT-2."""
    if isinstance(backbone, PreTrainedConfig):
        return copy.deepcopy(backbone)  # the attention kernel is written into it; the caller's stays untouched
    if isinstance(backbone, str):
        raise CoCoMixError(
            f"backbone={backbone!r} is a name; give the configuration, AutoConfig.from_pretrained({backbone!r}), or to "
            f"start from its weights, use from_pretrained_backbone({backbone!r}, …)."
        )
    values: dict[str, Any] = {"model_type": "gpt2"} if backbone is None else dict(backbone)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise CoCoMixError("backbone has no model_type; add for example model_type: gpt2.")
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError) as error:
        raise CoCoMixError(f"backbone cannot be built: {str(error).splitlines()[0]}") from error
