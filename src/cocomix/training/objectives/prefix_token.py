"""Prefix token (modded-nanogpt): the logits should also give what the next token begins with.

L = (1/N) Σ_t w [logsumexp(z_t) − z_{t,x'}], where x' is the token whose bytes are the longest proper prefix of those of
x_{t+1}; targets without one add nothing. w = ¼ for a third of training, then falling to 0 at two thirds.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.concepts.token_bytes import TokenBytes
from cocomix.data import Tokens
from cocomix.model.targets import HeadLoss, SetCrossEntropy, next_tokens
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm

_WEIGHT = Schedule(shape="linear", value=0.25, since=1 / 3, until=2 / 3)


class PrefixToken(SingleTerm):
    """Cross-entropy of the longest token that the next one begins with, nats per target token, prefix or not."""

    name = "prefix_token"

    def __init__(self, weight: Schedule = _WEIGHT) -> None:
        super().__init__(weight)
        self.prefixes = torch.empty(0, dtype=torch.int64)  # of every token, from the data's tokenizer. [vocab]

    def prepare(self, data: Tokens, model: PreTrainedModel) -> None:
        """Look through the vocabulary, whose tokens must say which bytes they stand for."""
        tokenizer = data.tokenizer()
        self.prefixes = prefix_tokens(TokenBytes(tokenizer, str(data.path)), data.manifest.vocab_size)

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        targets = next_tokens(batch["labels"], batch.get("attention_mask"))
        self.prefixes = self.prefixes.to(targets.device)
        prefixes = self.prefixes[targets.clamp_min(0)].masked_fill(targets == IGNORE, IGNORE)
        return {"prefix_token_loss": SetCrossEntropy(prefixes.reshape(-1, 1))}


def prefix_tokens(spelled: TokenBytes, vocab_size: int) -> Tensor:
    """Of each token the one whose bytes are the longest proper prefix of its own, `IGNORE` without. [vocab] int64"""
    pieces = [spelled.of([token]) if token < len(spelled) else b"" for token in range(vocab_size)]
    # Of two spelled alike the first.
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
    found = torch.full((vocab_size,), IGNORE)
    for token, piece in enumerate(pieces):
        prefixes = (ids[piece[:end]] for end in range(len(piece) - 1, 0, -1) if piece[:end] in ids)
        found[token] = next(prefixes, IGNORE)
    return found
