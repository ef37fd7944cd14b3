"""What a form of mixing is: concepts and hidden states in, the upper half's input out."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from cocomix.runtime.errors import CoCoMixError


class Concepts(NamedTuple):
    """All that a mixing sees of a prediction. Edits and interventions replace `ids` and `values` before it does.

    Attributes:
        values: logits of the chosen concepts, [batch, seq, k]; or predicted hidden states, [batch, seq, d_teacher].
        ids: the chosen concepts, `None` where hidden states are predicted. [batch, seq, k], int64
        mean: of the hidden state over d_model, which the predictor took out. [batch, seq, 1]
        std: likewise, unbiased. [batch, seq, 1]
        offset: the predictor's b_pre, which the released code adds to the compressed vector. [d_model]
    """

    values: Tensor
    ids: Tensor | None
    mean: Tensor
    std: Tensor
    offset: Tensor


class Layout(NamedTuple):
    """Where the tokens of a forward pass stand, for forms that look beyond a position, and what such a form leaves.

    Attributes:
        positions: of the tokens in their documents; `None` for 0 … seq − 1. [batch or 1, seq]
        attention_mask: 1 for tokens, those in the cache too. [batch, past + seq]
        cache: for what the form `keeps` of every token, of earlier calls too; `None` where there is no cache.
        shown: where a form puts what an objective or an evaluation reads, by name; `None` where nobody does.
        tokens: the new ones, where they were given. [batch, seq]
    """

    positions: Tensor | None = None
    attention_mask: Tensor | None = None
    cache: CacheLayerMixin | None = None
    shown: dict[str, Tensor] | None = None
    tokens: Tensor | None = None


Pass = Callable[[Tensor, int], Any]
"""Run the upper half on [batch, width · seq, d_model], in the pass of that number; its output, `last_hidden_state` and
all."""


class ConceptCompression(nn.Module):
    """Sparse concept values to one vector, one embedding row per concept."""

    def __init__(self, num_concepts: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_concepts, d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(
        self,
        ids: Tensor,  # [batch, seq, k] int64
        values: Tensor,  # [batch, seq, k]
    ) -> Tensor:  # [batch, seq, d_model]
        """Σ_j values_j · weight[ids_j] + bias: the dense product W_comp·s + b_comp without its zeros."""
        # Gradients of the values exist in float32 alone on GPUs, so training sums there; parameters usually are anyway.
        dtype = torch.float32 if torch.is_grad_enabled() else self.weight.dtype
        bags = F.embedding_bag(
            ids.flatten(0, 1), self.weight.to(dtype), per_sample_weights=values.flatten(0, 1).to(dtype), mode="sum"
        )
        return bags.view(*ids.shape[:2], -1) + self.bias


class HiddenCompression(nn.Linear):
    """A predicted hidden state [batch, seq, d_teacher] to [batch, seq, d_model]."""

    def forward(self, ids: None, values: Tensor) -> Tensor:  # type: ignore[override]
        """W_comp·values + b_comp."""
        return super().forward(values)


class Mixing(nn.Module):
    """Base of the forms: compress a prediction, de-normalise it, and put it into the sequence.

    Dimensions: mixed_seq = positions_per_token · seq. A form says what it is in class attributes and overrides `mix`,
    or `forward` where nothing is predicted.

    Attributes:
        name: in configurations and recipes.
        described: one line, for model cards and reports.
        arm: what sets a run apart from the paper's form, in tables.
        positions_per_token: positions of the upper half that one token takes, in its last pass.
        predicts: whether concepts (or hidden states) are predicted at all.
        mixes_in: whether the prediction enters the upper half, so that edits of concepts change the next token.
        like_hidden: whether what is compressed is on the scale of the hidden state, and can be compared with it.
        feeds_back: whether the form predicts vectors of its own, without labels, from the lower half's outputs so far.
        reads_tokens: whether it looks at tokens, so that the model cannot do with `inputs_embeds`.
        keeps: whether it keeps something of every token in a layer of the cache.
        softmax: whether the compression weighs concepts by a softmax of their logits in the place of these.
        compression: W_comp and b_comp of Eq. 3, where a prediction is mixed in.
    """

    name: ClassVar[str]
    described: ClassVar[str]
    arm: ClassVar[str]
    positions_per_token: ClassVar[int] = 1
    predicts: ClassVar[bool] = True
    mixes_in: ClassVar[bool] = True
    like_hidden: ClassVar[bool] = True
    feeds_back: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    keeps: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.own_positions = config.upper_positions == "own"
        self.softmax = config.concept_weights == "softmax"
        if self.mixes_in and config.prediction == "hidden":
            self.compression: nn.Module = HiddenCompression(config.teacher_hidden_size, config.hidden_size)
        elif self.mixes_in:
            self.compression = ConceptCompression(config.num_concepts, self.compressed_width(config))

    @classmethod
    def compressed_width(cls, config: Any) -> int:
        """Columns of W_comp."""
        return int(config.hidden_size)

    @classmethod
    def passes(cls, config: Any) -> tuple[int, ...]:
        """Positions of the upper half that one token takes, for every time it is run. Reads `CoCoMixConfig`'s names.

        FLOPs, memory and caches are counted by them.
        """
        return (cls.positions_per_token,)

    def attach(self, lower: PreTrainedModel, upper: PreTrainedModel) -> None:
        """See both halves when the model is built, for a form that hooks into them."""

    @classmethod
    def own_blocks(cls, config: Any) -> tuple[PreTrainedModel, int] | None:
        """Decoder blocks of its own, beside the halves, and how many tokens share one of their positions."""
        return None

    def token_tables(self) -> tuple[nn.Embedding, ...]:
        """What has a row for each token of the vocabulary, and changes its size with it."""
        return ()

    @classmethod
    def widened(cls, config: Any) -> bool:
        """Whether a baseline is the form itself, as wide as concepts cost, and not the plain decoder of its cost."""
        return not (cls.predicts or cls.feeds_back) and len(cls.passes(config)) == 1

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The input of the upper half's first pass. [batch, mixed_seq, d_model], from [batch, seq, d_model]

        Here the hidden states themselves where nothing is mixed in.
        """
        if not self.mixes_in:
            return hidden
        assert concepts is not None
        weights = concepts.values.softmax(-1) if self.softmax else concepts.values
        return self.mix(hidden, self.compression(concepts.ids, weights), concepts)

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        """Put the compressed prediction [batch, seq, d_model] into the sequence."""
        raise NotImplementedError

    def through(self, mixed: Tensor, upper: Pass) -> Any:
        """The upper half's output, from what `forward` made, for a form that runs it more than once."""
        return upper(mixed, 0)

    def readout(self, hidden: Tensor) -> Tensor:
        """The upper half's output where the next token is read. [batch, seq, d_model], from [batch, mixed_seq, …]"""
        return hidden[:, self.positions_per_token - 1 :: self.positions_per_token]

    def expand(
        self, hidden: Tensor, positions: Tensor | None, attention_mask: Tensor | None, cached: bool, width: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Position ids [batch, mixed_seq] and padding mask [batch, …] of the upper half.

        Token position p becomes positions width·p … width·p + width − 1, or p as often with `upper_positions: token`.

        Positions that are to keep documents apart are refused there.

        Args:
            hidden: what the lower half returned. [batch, seq, d_model]
            positions: of its tokens; `None` for 0 … seq − 1. [batch, seq]
            attention_mask: 1 for tokens, those in the cache too. [batch, past + seq]
            cached: whether the upper half is given a cache.
            width: positions of one token, of `passes`.
        """
        if width == 1:
            return positions, attention_mask
        if not self.own_positions:
            if attention_mask is None and not cached:
                # transformers tells documents by positions that do not rise by one, unless there is a mask or a cache.
                if positions is not None and bool((positions.diff(dim=1) != 1).any()):
                    raise CoCoMixError(
                        "upper_positions='token' cannot keep documents apart by position_ids; use upper_positions "
                        "'own'."
                    )
                attention_mask = hidden.new_ones(hidden.shape[:2])
            if positions is None:
                positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
            positions = positions.repeat_interleave(width, dim=1)
        elif positions is not None:
            offsets = torch.arange(width, device=positions.device)
            positions = (width * positions.unsqueeze(-1) + offsets).flatten(1)
        return positions, None if attention_mask is None else attention_mask.repeat_interleave(width, dim=1)

    @classmethod
    def options(cls, config: Any) -> list[str]:
        """What else sets a run apart: settings of the form that are not the paper's. Reads `CoCoMixConfig`'s names."""
        init = config.compression_init
        return [
            *([f"rank {config.concept_rank}"] if cls.predicts and config.concept_rank is not None else []),
            *([f"{init} compression"] if cls.predicts and init != "normal" else []),
            *(["softmax"] if cls.mixes_in and config.concept_weights == "softmax" else []),
            *(["token positions"] if cls.positions_per_token > 1 and config.upper_positions == "token" else []),
        ]

    @classmethod
    def unread_parameters(cls, config: PreTrainedConfig) -> int:
        """Parameters that take no part in a token's forward pass: of W_comp all but k rows (paper section 3)."""
        if not cls.mixes_in or config.prediction == "hidden":
            return 0
        return int((config.num_concepts - config.concept_topk) * cls.compressed_width(config))

    @classmethod
    def flops_per_token(cls, config: PreTrainedConfig, block_size: int | None = None) -> float:
        """FLOPs of the form, 2 per multiply-add; here k rows of W_comp, or all of it for hidden states.

        Args:
            block_size: context in tokens, where a form has attention scores; `None` leaves them out.
        """
        if not cls.mixes_in:
            return 0.0
        inputs = config.teacher_hidden_size if config.prediction == "hidden" else config.concept_topk
        return float(2 * inputs * cls.compressed_width(config))


def denormalised(compressed: Tensor, concepts: Concepts) -> Tensor:
    """ĉ = (compressed + b_pre)·σ + μ. The normalisation is the released code's; the paper leaves it out."""
    return (compressed + concepts.offset) * concepts.std + concepts.mean


def interleaved(hidden: Tensor, vector: Tensor) -> Tensor:
    """(h_1, ĉ_1, h_2, ĉ_2, …): two [batch, seq, d_model] as one [batch, 2·seq, d_model]."""
    return torch.stack((hidden, vector.to(hidden.dtype)), dim=2).flatten(1, 2)
