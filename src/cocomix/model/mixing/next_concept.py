"""`mixing: next_concept`, ConceptLM (arXiv 2602.08984): the next chunk's mean state is predicted and fed back.

With e_p the lower half's output at position p of a document, chunks of k tokens, c_j the mean of e over chunk j, and
for each of S segments of a vector (S: attention heads) a codebook of N codes q_n = A a_n with frozen a_n (SimVQ):

    z_{j+1} = heads(blocks(c_0 … c_j))            [S, N], by causal blocks over chunks
    ĉ_{j+1} = Σ_n z_{j+1,n} q_n                   segment by segment
    u_p     = norm(e_p) + norm(ĉ_⌊(p+1)/k⌋)       the upper half's input; ĉ_0 = 0

Position p is told of the chunk that its next token belongs to. Chunks begin anew with every document; padding is in
none. What is learnt beside next tokens, ĉ_j ≈ c_j and the codebooks, is `shown` to the objective `ncp`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.backbone import blocks_of, further_blocks
from cocomix.model.cache import NothingCached
from cocomix.model.mixing.form import Concepts, Layout, Mixing
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.flops import block_flops

_EPSILON = 1e-5
_SAID = {"chunk_tokens": (4, "tokens a chunk"), "chunk_codes": (64, "codes"), "chunk_blocks": (1, "concept blocks")}


class NextConcept(Mixing):
    """See the module. Settings: `chunk_tokens` k, `chunk_codes` N, `chunk_blocks`, `concept_weights` for softmax z."""

    name = "next_concept"
    described = "the next chunk's mean state is predicted and added to the hidden states (ConceptLM)"
    arm = "next concept"
    predicts = mixes_in = False
    feeds_back = keeps = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        width, segments, self.size = config.hidden_size, config.num_attention_heads, config.chunk_tokens
        if width % segments:
            raise CoCoMixError(
                f"mixing='next_concept' has one codebook for each attention head, and hidden_size={width} cannot be "
                f"shared by {segments} heads; use another backbone."
            )
        each = width // segments
        self.blocks = further_blocks(config.backbone, config.chunk_blocks, config._attn_implementation)
        self.heads = nn.Linear(width, segments * config.chunk_codes)
        self.frozen: Tensor
        self.register_buffer("frozen", torch.randn(segments, config.chunk_codes, each) * each**-0.5)
        self.basis = nn.Parameter(torch.eye(each).repeat(segments, 1, 1))  # A, which starts as the identity
        self.state_norm, self.concept_norm = (nn.RMSNorm(width, eps=_EPSILON) for _ in range(2))

    def codes(self) -> Tensor:
        """The codebooks. [segments, codes, d_model / segments]"""
        return self.frozen @ self.basis.mT

    def forward(self, hidden: Tensor, concepts: Concepts | None, layout: Layout | None = None) -> Tensor:
        """The u of the module's formula. With a cache the chunks are made anew from the states that it keeps."""
        layout, new = layout or Layout(), hidden.shape[1]
        if layout.cache is not None:
            nothing = hidden.new_empty(len(hidden), 1, new, 0)
            hidden = layout.cache.update(hidden.unsqueeze(1), nothing)[0].squeeze(1)
        positions, ends = chunk_ends(hidden, layout, self.size)
        last, numbers, latest = _whole_chunks(positions, ends, self.size)
        inside = (last.unsqueeze(-1) - torch.arange(self.size, device=hidden.device)).clamp_min(0)
        pooled = _taken(hidden, inside.flatten(1)).reshape(*inside.shape, -1).mean(2)  # c, [batch, chunks, d_model]
        plain = layout.positions is None and layout.attention_mask is None and not self.blocks.gradient_checkpointing
        states = self.blocks(
            inputs_embeds=pooled,
            position_ids=numbers,  # which start again at every document, and so keep them apart
            past_key_values=NothingCached() if plain else None,
            use_cache=False,
        ).last_hidden_state
        codes = self.codes()
        logits = self.heads(states).unflatten(-1, (len(codes), -1))
        weights = logits.softmax(-1) if self.softmax else logits
        predicted = torch.einsum("bcsn,snd->bcsd", weights, codes.to(weights.dtype)).flatten(-2)  # ĉ of the next chunk
        latest, known = latest[:, -new:], (positions >= self.size - 1)[:, -new:].unsqueeze(-1)
        feedback = _taken(predicted, latest) * known
        if layout.shown is not None:
            self._show(layout.shown, pooled.detach(), predicted, latest)
            if not torch.is_grad_enabled():  # for evaluations, which replace the feedback
                following, chunk = (latest + 1).clamp_max(pooled.shape[1] - 1), (positions[:, -new:] + 1) // self.size
                there = known & (numbers.gather(1, following) == chunk).unsqueeze(-1)
                ahead = torch.where(there, _taken(pooled, following), feedback)  # its own where no whole chunk follows
                layout.shown.update(feedback=feedback, ahead=ahead, told=known.squeeze(-1))
        mixed: Tensor = self.state_norm(hidden[:, -new:]) + self.concept_norm(feedback)
        return mixed.to(hidden.dtype)

    def _show(self, shown: dict[str, Tensor], pooled: Tensor, predicted: Tensor, latest: Tensor) -> None:
        """Losses and codes of each chunk, to be read at its last token."""
        codes, true = self.codes().float(), pooled.float()
        parts = true.reshape(*true.shape[:2], len(codes), -1)  # [batch, chunks, segments, d_model / segments]
        with torch.no_grad():  # the distance is one that autocast leaves in float32
            nearest = torch.cdist(parts.flatten(0, 1).transpose(0, 1), codes).argmin(-1)  # [segments, batch · chunks]
        ids = nearest.T.reshape(parts.shape[:-1])
        chosen = codes[torch.arange(len(codes), device=ids.device), ids]
        far = (predicted[:, :-1].float() - true[:, 1:]).square().mean(-1)
        shown["ncp"] = F.pad(far, (1, 0)).gather(1, latest)  # [batch, seq]
        shown["codebook"] = (chosen - parts).square().mean((-2, -1)).gather(1, latest)  # [batch, seq]
        shown["codes"] = _taken(ids, latest)  # [batch, seq, segments]

    @classmethod
    def options(cls, config: Any) -> list[str]:
        found = [
            f"{getattr(config, name)} {said}" for name, (usual, said) in _SAID.items() if getattr(config, name) != usual
        ]
        return found + (["softmax"] if config.concept_weights == "softmax" else [])

    @classmethod
    def own_blocks(cls, config: Any) -> tuple[PreTrainedModel, int]:
        return further_blocks(config.backbone, config.chunk_blocks, None), config.chunk_tokens

    @classmethod
    def flops_per_token(cls, config: PreTrainedConfig, block_size: int | None = None) -> float:
        """Of blocks, heads and Σ_n z_n q_n, once a chunk; A is multiplied once a forward pass and left out."""
        with torch.device("meta"):
            blocks, _ = cls.own_blocks(config)
        chunks = None if block_size is None else max(block_size // config.chunk_tokens, 1)
        flops = block_flops(blocks_of(blocks), blocks.config, chunks)
        flops += 2.0 * config.hidden_size * config.chunk_codes * (config.num_attention_heads + 1)
        return float(flops / config.chunk_tokens)


def chunk_ends(tokens: Tensor, layout: Layout, size: int) -> tuple[Tensor, Tensor]:
    """Positions of all tokens in their documents, int64, and where a chunk of `size` is complete, bool. [batch, seq]

    `tokens` is anything of theirs, [batch, seq, …], with those that a cache has kept. With a cache, positions are
    counted by the mask alone, as transformers does.
    """
    batch, seq = tokens.shape[:2]
    mask, positions = layout.attention_mask, layout.positions
    if positions is None or layout.cache is not None:
        each = torch.ones(batch, seq, dtype=torch.long, device=tokens.device) if mask is None else mask.long()
        positions = (each.cumsum(-1) - 1).clamp_min(0)
    positions = positions.expand(batch, -1)
    ends = positions % size == size - 1
    return positions, ends if mask is None else ends & mask.bool()


def _whole_chunks(positions: Tensor, ends: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row's whole chunks: last tokens, numbers in their documents [batch, chunks]; the latest at each token.

    Their number is the largest possible one, which no device has to be asked for; those that a row has fewer of are
    never read.
    """
    batch, seq = positions.shape
    most, complete = max(seq // size, 1), ends.cumsum(-1)
    wanted = torch.arange(1, most + 1, device=ends.device).expand(batch, -1)
    places = torch.searchsorted(complete, wanted.contiguous())  # seq, where a row has fewer
    last = places.clamp_max(seq - 1)
    numbers = torch.where(places < seq, positions.gather(1, last) // size, 0)
    return last, numbers, (complete - 1).clamp(0, most - 1)


def _taken(rows: Tensor, at: Tensor) -> Tensor:
    """Rows [batch, n, d] at some indices [batch, m]. [batch, m, d]"""
    return rows.gather(1, at.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
