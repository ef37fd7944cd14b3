"""What follows a concept's labels: the tokens by which its effect on a text shows, whatever the dictionary says.

A label at token t speaks of token t + 1, whose loss chose it (paper Eq. 1). A concept that works therefore makes the
tokens likelier that follow its labels in the training text, which are seldom the tokens that activate it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cocomix.data import TRAIN, Tokens
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError

__all__ = ["follower_scores"]

_COUNTED_TOKENS = 4_000_000
_BLOCKS_AT_ONCE = 256


def follower_scores(data: Tokens, labels: Labels, concepts: Sequence[int]) -> Tensor:
    """How much more often than elsewhere a token follows a label of each concept.

    log((n + 1) / (e + 1)) with n, how often the token follows the label in the training split (its first 4 million
    tokens), and e, how often it would if it followed this label as it follows any token. Our choice: the ones keep
    rare tokens, of which little is known, near 0.

    Args:
        data: the tokens.
        labels: their labels.
        concepts: which ones.

    Returns:
        float32 [concepts, vocab], in nats.

    Raises:
        CoCoMixError: a concept does not exist.
    """
    for concept in concepts:
        if not 0 <= concept < labels.num_concepts:
            raise CoCoMixError(
                f"concept {concept} does not exist: the labels have concepts 0 to {labels.num_concepts - 1}."
            )
    vocabulary = data.manifest.vocab_size
    tokens, store = data.split(TRAIN), labels.split(TRAIN)
    places = torch.full((labels.num_concepts,), -1)
    places[torch.tensor(concepts)] = torch.arange(len(concepts))
    counts = torch.zeros(len(concepts) * vocabulary, dtype=torch.int64)
    everywhere = torch.zeros(vocabulary, dtype=torch.int64)
    used = min(len(tokens), max(1, _COUNTED_TOKENS // tokens.block_size))
    for start in range(0, used, _BLOCKS_AT_ONCE):
        rows = range(start, min(start + _BLOCKS_AT_ONCE, used))
        following = torch.stack([tokens[row]["input_ids"] for row in rows])[:, 1:]
        named = torch.stack([store[row]["concept_labels"] for row in rows])[:, :-1].long()  # [blocks, seq − 1, k]
        everywhere += torch.bincount(following.flatten(), minlength=vocabulary)
        place = torch.where(named >= 0, places[named.clamp_min(0)], -1)
        pairs = (place * vocabulary + following.unsqueeze(-1))[place >= 0]
        counts += torch.bincount(pairs, minlength=len(counts))
    observed = counts.view(len(concepts), vocabulary).double()
    expected = observed.sum(1, keepdim=True) * (everywhere / everywhere.sum().clamp_min(1))
    return ((observed + 1) / (expected + 1)).log().float()
