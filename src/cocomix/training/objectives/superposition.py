"""Token superposition (arXiv 2605.06546): training begins on bags of tokens and goes on with tokens.

While the weight is not 0, a block of L tokens is read as L / s bags: a bag's input is the mean of its tokens'
embeddings, its target the next bag, L = (1/M) Σ_b mean_{i∈bag b+1} CE(z_b, x_i) over the M bags with a target. No other
objective is called then. Of a bag in which a document ends, only the tokens of the document that it begins with are
read or predicted.
"""

from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.data import Tokens
from cocomix.model import CoCoMixConfig
from cocomix.model.accounting import account, build_model
from cocomix.model.targets import HeadLoss, SetCrossEntropy
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm

_FIRST = Schedule(shape="stop", value=1.0, until=0.3)


class Superposition(SingleTerm):
    """Cross-entropy of the next bag, nats per bag, in the place of all other objectives.

    Args:
        weight: not 0 as long as bags are read.
        bag: tokens of one, s.
    """

    name = "superposition"
    alone = True
    outside_forward = True

    def __init__(self, weight: Schedule = _FIRST, bag: Annotated[int, Field(ge=2)] = 6) -> None:
        super().__init__(weight)
        self.bag = bag

    def prepare(self, data: Tokens, model: PreTrainedModel) -> None:
        """Refuse, with a `CoCoMixError`, a model that looks tokens up: bags are none."""
        if isinstance(model.config, CoCoMixConfig) and model.config.looks_up is not None:
            raise CoCoMixError(
                f"auxiliary.superposition trains on bags, in which {model.config.looks_up} finds no tokens; "
                "remove one of the two."
            )

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Bags' embeddings in the place of tokens."""
        bags = self._bags(batch)
        embedded = self.model.get_input_embeddings()(bags.tokens)  # [batch, bags, s, d_model]
        shares = bags.read / bags.read.sum(-1, keepdim=True).clamp_min(1)
        given = {"inputs_embeds": (embedded * shares.unsqueeze(-1).to(embedded.dtype)).sum(-2), "use_cache": False}
        if batch.get("attention_mask") is not None:
            given["attention_mask"] = bags.read.any(-1).long()
        if batch.get("position_ids") is not None:
            given["position_ids"] = _positions(bags.documents[..., 0])
        return given | ({"output_logits": False} if isinstance(self.model.config, CoCoMixConfig) else {})

    def head_losses(self, batch: Batch) -> dict[str, HeadLoss]:
        return {"superposition_loss": SetCrossEntropy(self._targets(batch).flatten(0, 1))}

    def counted(self, batch: Batch) -> Tensor:
        """Bags with a target. [batch, bags]"""
        return self._targets(batch).ne(IGNORE).any(-1)

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """Below 0: of every s tokens the model reads one bag."""
        with torch.device("meta"):
            whole = account(build_model(config)).training_flops_per_token
        return whole * (1.0 / self.bag - 1.0)

    def _bags(self, batch: Batch) -> "_Bags":
        tokens, positions, mask = (batch.get(name) for name in ("input_ids", "position_ids", "attention_mask"))
        assert tokens is not None
        documents = torch.zeros_like(tokens) if positions is None else positions.eq(0).cumsum(-1)
        read = torch.ones_like(tokens).bool() if mask is None else mask[:, -tokens.shape[1] :].bool()
        tokens, documents, read, labels = (self._cut(each) for each in (tokens, documents, read, batch["labels"]))
        return _Bags(tokens, documents, read & (documents == documents[..., :1]), labels)

    def _cut(self, rows: Tensor) -> Tensor:
        """[batch, seq] as [batch, seq // s, s]; the last few tokens that fill no bag are left out."""
        bags = rows.shape[1] // self.bag
        return rows[:, : bags * self.bag].reshape(len(rows), bags, self.bag)

    def _targets(self, batch: Batch) -> Tensor:
        """The tokens of the next bag that are of this bag's document, `IGNORE` in place of others. [batch, bags, s]"""
        bags = self._bags(batch)
        same = bags.documents[:, 1:] == bags.documents[:, :-1, :1]
        counted = same & bags.read[:, 1:] & bags.read[:, :-1].any(-1, keepdim=True)
        following = bags.labels[:, 1:].masked_fill(~counted, IGNORE)
        return nn.functional.pad(following, (0, 0, 0, 1), value=IGNORE)


class _Bags(NamedTuple):
    """[batch, bags, s] each: tokens, which document each is of, whether it is read, and what it is as a target."""

    tokens: Tensor
    documents: Tensor
    read: Tensor
    labels: Tensor


def _positions(documents: Tensor) -> Tensor:
    """Positions that start again where a bag is of another document than the one before. [batch, bags]"""
    index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    begins = torch.zeros_like(index)
    begins[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], index[:, 1:], 0)
    return index - begins.cummax(-1).values
