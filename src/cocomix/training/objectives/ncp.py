"""Next-concept prediction (NCP; ConceptLM, arXiv 2602.08984), for the form of mixing `next_concept`.

L = (1/M) Σ_j mean_d (ĉ_j − sg c_j)² + (1/M') Σ_j mean_d (q(c_j) − sg c_j)²

c_j is the mean state of a chunk of tokens, ĉ_j what was predicted of it from the chunks before, and q(c_j) the nearest
codes, segment by segment: the codebooks follow the states, and no state follows them. The first sum runs over the M
chunks with one before them in their document, the second over all M' whole chunks. Measured beside it, in each
micro-batch, averages over segments: `code_use`, the share of the codes that are nearest to some chunk, and
`code_perplexity`, e^entropy of how often each is, which shows a collapse where `code_use` does not.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig, Layout
from cocomix.model.mixing.next_concept import chunk_ends
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training.objectives.objective import ALWAYS, Batch, LossTerm, Objective, Schedule


class NextConceptPrediction(Objective):
    """Squared distances of predicted and of quantised chunks from the true ones, both with the weight."""

    name = "ncp"

    def __init__(self, weight: Schedule = ALWAYS) -> None:
        super().__init__(weight)
        self.size = self.codes = 0  # of the model, which `build_head` sees

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Chunks that are predicted, and chunks."""
        return {name: counted.sum() for name, counted in self._counted(batch).items()}

    def __call__(self, output: Any, batch: Batch, head: nn.Module | None) -> dict[str, LossTerm]:
        """`ncp_loss` and `codebook_loss`, per chunk; `code_perplexity` and `code_use`."""
        counted, terms = self._counted(batch), {}
        for name, found in (("ncp_loss", output.shown["ncp"]), ("codebook_loss", output.shown["codebook"])):
            terms[name] = LossTerm((found * counted[name]).sum(), counted[name].sum(), self.weight)
        ids, chunks = output.shown["codes"], counted["codebook_loss"]  # [batch, seq, segments], [batch, seq]
        used = torch.zeros(ids.shape[-1], self.codes, device=ids.device)
        used.scatter_add_(1, ids.flatten(0, 1).T, chunks.flatten().float().expand(ids.shape[-1], -1))
        shares = used / chunks.sum().clamp_min(1)
        perplexity = torch.special.entr(shares).sum(-1).exp().mean()
        one = torch.ones_like(perplexity)
        return terms | {
            "code_perplexity": LossTerm(perplexity, one, None),
            "code_use": LossTerm(used.gt(0).float().mean(), one, None),
        }

    def build_head(self, config: PreTrainedConfig) -> None:
        """None: what it trains is the form's.

        Raises:
            CoCoMixError: the model has another form of mixing.
        """
        if not isinstance(config, CoCoMixConfig) or config.mixing != "next_concept":
            raise CoCoMixError(
                "auxiliary.ncp needs objective: cocomix and model.mixing: next_concept, which makes the concepts; set "
                "them, or leave ncp out."
            )
        self.size, self.codes = config.chunk_tokens, config.chunk_codes

    def extra_flops_per_token(self, config: PreTrainedConfig) -> float:
        """Of the search for the nearest codes, which has no backward pass."""
        return float(2 * config.hidden_size * config.chunk_codes / config.chunk_tokens)

    def _counted(self, batch: Batch) -> dict[str, Tensor]:
        """At which tokens a chunk ends that counts, none of blocks that only fill a batch. [batch, seq] each"""
        layout = Layout(batch.get("position_ids"), batch.get("attention_mask"))
        positions, ends = chunk_ends(batch["labels"], layout, self.size)
        chunks = ends & (batch["labels"] != IGNORE)
        return {"ncp_loss": chunks & (positions >= 2 * self.size - 1), "codebook_loss": chunks}
