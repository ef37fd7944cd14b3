"""Which concepts matter at a position: attribution scores and the labels chosen by them (method.md §2, paper Eq. 1).

With c the dictionary's activations and g = ∂L/∂h the gradient at the hooked hidden state, the attribution of concept i
is

    a_i = c_i · (W_dec[i] · g)        (nats)

The factor std of the de-normalisation is left out, as in the released code: it is the same for all concepts of a
position, so it never changes a label. A position's labels are the k concepts with the largest criterion, which is a
(`sign="loss"`, paper and released code), −a (`logprob`), |a| (`abs`) or the activation itself
(`selection="activation"`, paper Fig. 6a), or they are drawn among the active concepts (`random`, our control). Only a
positive criterion makes a label; all other entries are −100.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.decoder import GradientScope
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.random_labels import draw

__all__ = [
    "IGNORED",
    "AttributionSettings",
    "ConceptLabels",
    "attribute",
    "attribute_dense",
    "choose_labels",
    "label_agreement",
]

IGNORED = -100  # what torch's cross-entropy ignores

_CHUNK_ELEMENTS = 2**23  # gathered decoder rows held at once: 32 MiB in float32


class AttributionSettings(BaseModel):
    """How concepts are scored and chosen; the defaults are the released code's.

    Attributes:
        activation: `latent` = after the dictionary's activation, only active concepts are candidates; `pre` = before it
            (paper Eq. 1), every concept is a candidate.
        gradient: `sequence` = of the loss of all targets; `next` = of the loss of the position's own next token.
        sign: `loss` = concepts that raise the loss; `logprob` = concepts that lower it; `abs` = either.
        selection: `attribution`; `activation` = the most active concepts; `random` = any of the active concepts. With
            the last two, `sign`, `gradient` and `activation` play no part.
        seed: of `selection="random"`; see `cocomix.concepts.random_labels`.
        dtype: `bfloat16` and `float16` run the teacher under autocast. Scores and the dictionary stay in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: Literal["latent", "pre"] = "latent"
    gradient: GradientScope = "sequence"
    sign: Literal["loss", "logprob", "abs"] = "loss"
    selection: Literal["attribution", "activation", "random"] = "attribution"
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class ConceptLabels(NamedTuple):
    """The concepts chosen per position.

    Attributes:
        ids: int64 [batch, seq, k], best first; −100 where there is no label.
        scores: float32 [batch, seq, k], the attribution (signed, nats) or, for other selections, the activation; 0
            where there is no label.
    """

    ids: Tensor
    scores: Tensor


def attribute(dictionary: ConceptDictionary, codes: SparseCodes, gradient: Tensor) -> Tensor:
    """Attribution of the active concepts only.

    The naive form is `(gradient @ W_dec.T * latents).gather(-1, ids)`; here only the active rows of W_dec are read.

    Args:
        dictionary: its decoder is used.
        codes: active concepts [..., width].
        gradient: ∂L/∂h [..., d_model], float32.

    Returns:
        [..., width], zero in unused slots.
    """
    width = codes.ids.shape[-1]
    ids, flat = codes.ids.reshape(-1, width), gradient.reshape(-1, dictionary.d_model)
    size = max(1, _CHUNK_ELEMENTS // max(1, width * dictionary.d_model))
    directional = [
        torch.bmm(F.embedding(id_chunk, dictionary.W_dec), chunk.unsqueeze(-1)).squeeze(-1)  # [chunk, width]
        for id_chunk, chunk in zip(torch.split(ids, size), torch.split(flat, size), strict=True)
    ]
    return codes.values * torch.cat(directional).reshape(codes.ids.shape)


def attribute_dense(dictionary: ConceptDictionary, hidden: Tensor, gradient: Tensor, activation: str) -> Tensor:
    """Attribution of every concept, [..., n_concepts] from hidden and gradient [..., d_model]."""
    if activation == "pre":
        return dictionary.pre_activations(hidden) * (gradient @ dictionary.W_dec.T)
    codes = dictionary.encode(hidden)
    return dictionary.densify(SparseCodes(codes.ids, attribute(dictionary, codes, gradient)))


def choose_labels(
    dictionary: ConceptDictionary,
    hidden: Tensor,
    gradient: Tensor | None,
    labelled: Tensor,
    k: int,
    settings: AttributionSettings,
    contexts: Tensor | None = None,
) -> ConceptLabels:
    """Score the concepts of each position and keep the best k.

    Args:
        dictionary: the concepts.
        hidden: [batch, seq, d_model].
        gradient: of the loss with respect to `hidden`; only `selection="attribution"` needs it.
        labelled: bool [batch, seq]; False positions get no labels.
        k: labels per position.
        settings: see `AttributionSettings`.
        contexts: hashes of the tokens up to each position [batch, seq]; only `selection="random"` needs them.
    """
    if settings.selection == "random":
        assert contexts is not None
        candidates = draw(dictionary.encode(hidden), contexts, k)
    elif settings.selection == "activation" or gradient is None:
        assert settings.selection == "activation"
        candidates = dictionary.encode(hidden)
    elif settings.activation == "latent":
        codes = dictionary.encode(hidden)
        candidates = SparseCodes(codes.ids, attribute(dictionary, codes, gradient))
    else:
        candidates = _best_of_all(dictionary, hidden, gradient, k, settings)
    criterion = _criterion(candidates.values, settings)
    best, slots = criterion.topk(min(k, criterion.shape[-1]), dim=-1)
    kept = (best > 0) & labelled.unsqueeze(-1)
    missing = (0, k - slots.shape[-1])
    ids = candidates.ids.gather(-1, slots).masked_fill(~kept, IGNORED)
    scores = candidates.values.gather(-1, slots).masked_fill(~kept, 0.0)
    return ConceptLabels(F.pad(ids, missing, value=IGNORED), F.pad(scores.float(), missing))


def label_agreement(first: Tensor, second: Tensor) -> float:
    """Share of positions whose label sets are equal, among positions labelled in at least one of the two.

    Args:
        first: label ids [batch, seq, k], −100 = no label.
        second: the same shape.

    Returns:
        A number in [0, 1]; 1.0 when no position is labelled.
    """
    labelled = ((first != IGNORED) | (second != IGNORED)).any(dim=-1)
    equal = (first.sort(dim=-1).values == second.sort(dim=-1).values).all(dim=-1)
    return float(equal[labelled].float().mean()) if bool(labelled.any()) else 1.0


def _best_of_all(
    dictionary: ConceptDictionary, hidden: Tensor, gradient: Tensor, k: int, settings: AttributionSettings
) -> SparseCodes:
    """The k best concepts by attribution of the pre-activations, over chunks of positions."""
    k = min(k, dictionary.n_concepts)
    ids, values = [], []
    flat = hidden.reshape(-1, dictionary.d_model), gradient.reshape(-1, dictionary.d_model)
    for hidden_chunk, gradient_chunk in zip(*map(dictionary.position_chunks, flat), strict=True):
        scores = attribute_dense(dictionary, hidden_chunk, gradient_chunk, "pre")
        chosen = _criterion(scores, settings).topk(k, dim=-1).indices
        ids.append(chosen)
        values.append(scores.gather(-1, chosen))
    shape = (*hidden.shape[:-1], k)
    return SparseCodes(torch.cat(ids).reshape(shape), torch.cat(values).reshape(shape))


def _criterion(values: Tensor, settings: AttributionSettings) -> Tensor:
    """What is maximised: see the module's text."""
    if settings.selection != "attribution" or settings.sign == "loss":
        return values
    return -values if settings.sign == "logprob" else values.abs()
