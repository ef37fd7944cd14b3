"""`future_clusters`: what the next tokens are about, from the text alone (our choice).

A position's bag is Σ idf(w) · e(w) over the next `window` tokens w of the same document, at length 1. The embeddings e
are a truncated singular value decomposition of the positive pointwise mutual information of tokens that stand at most
eight apart (Levy & Goldberg, 2014, with √S), at length 1. Concepts are the clusters that k-means finds of the sample's
bags, and labels are the k nearest ones by cosine.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.future import FutureConfig, FutureLabeller
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.runtime.ignore import IGNORE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_NEAR = 8  # tokens that count as standing together
_BAGS_PER_CLUSTER = 64  # as many as k-means needs; more take long


class FutureClustersConfig(FutureConfig):
    """Settings of `future_clusters`."""

    kind: Literal["future_clusters"] = "future_clusters"
    """The k clusters that the bag of the next tokens is nearest to."""
    window: int = Field(default=32, ge=1)
    """How many of the following tokens are looked at."""
    num_concepts: int = Field(default=4096, ge=2)
    """Clusters (C)."""
    dimensions: int = Field(default=64, ge=1)
    """Of the tokens' embeddings."""
    seed: int = Field(default=0, ge=0)
    """Of the decomposition and of k-means."""


class FutureClustersLabeller(FutureLabeller):
    """Labels by the cosine between bag and cluster, which is the score.

    The tables are `idf`, `embeddings` float32 [vocab, dimensions] and `centres` float32 [num_concepts, dimensions].
    """

    kind = "future_clusters"
    config_type: ClassVar = FutureClustersConfig

    @property
    def num_concepts(self) -> int:
        return int(self.settings["num_concepts"])

    def learned(self, rows: list[Tensor], idf: Tensor) -> dict[str, Tensor]:
        require_extra("report", "scipy", "sklearn", purpose=f"learning labels of kind {self.kind}")
        from sklearn.cluster import MiniBatchKMeans

        embeddings = self._embeddings(rows)
        positions = sum(batch.numel() for batch in rows)
        step = max(1, positions // (_BAGS_PER_CLUSTER * self.num_concepts))
        bags = torch.cat([self._bags(batch, None, idf, embeddings).flatten(0, 1)[::step].cpu() for batch in rows])
        bags = bags[bags.any(dim=-1)]
        if len(bags) < self.num_concepts:
            raise CoCoMixError(
                f"{len(bags):,} positions of the sample have words ahead, too few for {self.num_concepts:,} clusters; "
                "lower num_concepts or raise sample_tokens."
            )
        found = MiniBatchKMeans(
            self.num_concepts, random_state=self.settings["seed"], batch_size=8192, max_iter=20, n_init=1
        ).fit(bags.numpy())
        centres = F.normalize(torch.from_numpy(found.cluster_centers_).float(), dim=-1)
        return {"embeddings": embeddings, "centres": centres}

    def layouts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        rows = {"embeddings": self.vocabulary.size, "centres": self.num_concepts}
        dimensions = int(self.settings["dimensions"])
        return super().layouts() | {name: (torch.float32, (count, dimensions)) for name, count in rows.items()}

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        self.require_tables()
        if k > self.num_concepts:
            raise CoCoMixError(f"{self.kind} has {self.num_concepts} clusters, so k must not be {k}.")
        bags = self._bags(input_ids, attention_mask, self._tables["idf"], self._tables["embeddings"])
        cosines, ids = (bags @ self._tables["centres"].T).topk(k, dim=-1)
        empty = ~bags.any(dim=-1, keepdim=True)
        return ConceptLabels(ids.masked_fill(empty, IGNORE), cosines.masked_fill(empty, 0.0))

    def flops_per_token(self, seq: int) -> float:
        return 2.0 * int(self.settings["dimensions"]) * (self.window + self.num_concepts)  # bags, and their cosines

    def _bags(self, input_ids: Tensor, attention_mask: Tensor | None, idf: Tensor, embeddings: Tensor) -> Tensor:
        """Bag of every position, [batch, seq, dimensions], of length 1; 0 where no token is ahead."""
        tokens, same = self.ahead(input_ids, attention_mask)
        weights = (idf.to(self.device)[tokens] * same).flatten(0, 1)
        bags = F.embedding_bag(tokens.flatten(0, 1), embeddings.to(self.device), per_sample_weights=weights, mode="sum")
        return F.normalize(bags, dim=-1).view(*input_ids.shape, -1)

    def _embeddings(self, rows: list[Tensor]) -> Tensor:
        from sklearn.decomposition import TruncatedSVD

        information = self._information(rows)
        dimensions = self.settings["dimensions"]
        if dimensions >= information.shape[0]:
            raise CoCoMixError(
                f"dimensions={dimensions} must be below the {information.shape[0]} tokens of the vocabulary."
            )
        found = TruncatedSVD(dimensions, random_state=self.settings["seed"]).fit(information)
        projected = information @ found.components_.T  # U · S
        scales = np.sqrt(np.maximum(found.singular_values_, np.finfo(np.float32).tiny))
        return F.normalize(torch.from_numpy(projected / scales).float(), dim=-1)

    def _information(self, rows: list[Tensor]) -> "csr_array":
        """max(0, ln(p(v, w) / (p(v) p(w)))) of tokens near one another. [vocab, vocab]"""
        from scipy.sparse import coo_array, csr_array

        size = self.vocabulary.size
        counts: Any = csr_array((size, size), dtype=np.float64)
        documents = [self._documents(batch.to(self.device), None).cpu() for batch in rows]
        for distance in range(1, _NEAR + 1):
            pairs = [
                torch.stack([batch[:, :-distance], batch[:, distance:]])[:, of[:, distance:] == of[:, :-distance]]
                for batch, of in zip(rows, documents, strict=True)
            ]
            first, second = torch.cat(pairs, dim=-1).numpy()  # [2, pairs]
            counts = counts + coo_array((np.ones(len(first)), (first, second)), shape=(size, size)).tocsr()
        counts = (counts + counts.T).tocoo()
        totals = np.maximum(counts.sum(axis=1), 1.0)
        values = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
        return csr_array((np.maximum(values, 0.0), (counts.row, counts.col)), shape=(size, size))
