"""Attribution of concepts, and the choice of labels by it (method.md §2, paper Eq. 1).

With c the dictionary's activations and g = ∂L/∂h the gradient at the hooked hidden state, the attribution of concept i
is

    a_i = c_i · (W_dec[i] · g)        (nats)

The factor std of the de-normalisation is left out, as in the released code: it is the same for all concepts of a
position, so it never changes a label. A position's labels are the k concepts with the largest criterion, which is a
(`sign="loss"`, paper and released code), −a (`logprob`) or |a| (`abs`). Only a positive criterion makes a label.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.labeller import ConceptLabels
from cocomix.runtime.ignore import IGNORE

Activation = Literal["latent", "pre"]
"""What the gradient is multiplied with: `latent` = the dictionary's activations, so only active concepts are candidates
(released code); `pre` = the pre-activations, so every concept is (paper Eq. 1)."""
Sign = Literal["loss", "logprob", "abs"]
"""Which concepts are wanted: `loss` = those that raise the loss; `logprob` = those that lower it; `abs` = either."""

_CHUNK_ELEMENTS = 2**23  # gathered decoder rows held at once: 32 MiB in float32


def attribute(dictionary: ConceptDictionary, codes: SparseCodes, gradient: Tensor) -> Tensor:
    """Attribution of the active concepts [..., width], from ∂L/∂h [..., d_model] in float32; zero in unused slots.

    The naive form is `(gradient @ W_dec.T * latents).gather(-1, ids)`; here only the active rows of W_dec are read.
    """
    width = codes.ids.shape[-1]
    ids, flat = codes.ids.reshape(-1, width), gradient.reshape(-1, dictionary.d_model)
    size = max(1, _CHUNK_ELEMENTS // max(1, width * dictionary.d_model))
    directional = [
        torch.bmm(F.embedding(id_chunk, dictionary.W_dec), chunk.unsqueeze(-1)).squeeze(-1)  # [chunk, width]
        for id_chunk, chunk in zip(torch.split(ids, size), torch.split(flat, size), strict=True)
    ]
    return codes.values * torch.cat(directional).reshape(codes.ids.shape)


def best_by_attribution(
    dictionary: ConceptDictionary, hidden: Tensor, gradient: Tensor, k: int, *, activation: Activation, sign: Sign
) -> SparseCodes:
    """Candidates for labels, with their attribution as values: all active concepts, or with `pre` the k best of all.

    From hidden states [batch, seq, d_model] and the loss's gradient with respect to them, float32.
    """
    if activation == "latent":
        codes = dictionary.encode(hidden)
        return SparseCodes(codes.ids, attribute(dictionary, codes, gradient))
    k = min(k, dictionary.n_concepts)
    ids, values = [], []
    flat = hidden.reshape(-1, dictionary.d_model), gradient.reshape(-1, dictionary.d_model)
    for hidden_chunk, gradient_chunk in zip(*map(dictionary.position_chunks, flat), strict=True):
        scores = dictionary.pre_activations(hidden_chunk) * (gradient_chunk @ dictionary.W_dec.T)
        chosen = criterion(scores, sign).topk(k, dim=-1).indices
        ids.append(chosen)
        values.append(scores.gather(-1, chosen))
    shape = (*hidden.shape[:-1], k)
    return SparseCodes(torch.cat(ids).reshape(shape), torch.cat(values).reshape(shape))


def criterion(attribution: Tensor, sign: Sign) -> Tensor:
    """The number that is largest for the wanted concepts."""
    if sign == "loss":
        return attribution
    return -attribution if sign == "logprob" else attribution.abs()


def best_labels(candidates: SparseCodes, ranks: Tensor, labelled: Tensor, k: int) -> ConceptLabels:
    """The k best candidates [batch, seq, width] of each position, or all where there are fewer.

    What is maximised are `ranks` [batch, seq, width], of which a label needs a positive one; only positions of
    `labelled`, bool [batch, seq], get labels.
    """
    best, slots = ranks.topk(min(k, ranks.shape[-1]), dim=-1)
    kept = (best > 0) & labelled.unsqueeze(-1)
    missing = (0, k - slots.shape[-1])
    ids = candidates.ids.gather(-1, slots).masked_fill(~kept, IGNORE)
    scores = candidates.values.gather(-1, slots).masked_fill(~kept, 0.0)
    return ConceptLabels(F.pad(ids, missing, value=IGNORE), F.pad(scores.float(), missing))
