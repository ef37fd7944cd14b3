"""`token_lookup`: the labels that a table from the current token alone gives (control for the token's identity).

For every token x the table holds the concepts with the largest mean activation E[c_i | x_t = x] over all positions of
a sample of the corpus that hold x, where a concept that is not active counts as 0. A student that gains as much from
these labels as from others has learned nothing of context from either.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from cocomix.artifacts import fingerprint_json, tensor_sha256
from cocomix.concepts.decoder import NumberFormat
from cocomix.concepts.labeller import ConceptLabels
from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

__all__ = ["TABLE_WIDTH", "TokenLookupConfig", "TokenLookupLabeller"]

TABLE_WIDTH = 32
"""Concepts kept per token: labels per position can be no more."""

_PENDING = 2**23  # activations summed at once: 128 MiB


class TokenLookupConfig(TeacherLabellerConfig):
    """Settings of `token_lookup`."""

    kind: Literal["token_lookup"] = "token_lookup"
    """The k concepts with the largest mean activation over all positions that hold the same token."""
    k: int = Field(default=4, ge=1, le=TABLE_WIDTH)
    """Labels per position."""
    sample_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens of the training split that the means are taken over."""


class TokenLookupLabeller(TeacherLabeller):
    """Labels looked up by the current token; scores are mean activations. `fit` it or give it tables first.

    A token that the sample does not hold gets no labels. Positions without labels are those of the other kinds.
    """

    kind = "token_lookup"
    algorithm = "1"
    config_type: ClassVar = TokenLookupConfig

    def __init__(
        self,
        teacher: ConceptTeacher,
        *,
        sample_tokens: int = 2_000_000,
        dtype: NumberFormat = "float32",
        tables: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(teacher, dtype=dtype, sample_tokens=sample_tokens)
        self.sample_tokens = sample_tokens
        self._tables = dict(tables or {})
        shape = (teacher.vocab_size, TABLE_WIDTH)
        for name, tensor in self._tables.items():
            if tuple(tensor.shape) != shape:
                raise CoCoMixError(
                    f"the table {name} of token_lookup has shape {list(tensor.shape)}, but this teacher needs "
                    f"{list(shape)}; fit it on this teacher."
                )

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Self:
        """Learn the table from batches of token ids, int64 [batch, seq] each.

        Raises:
            CoCoMixError: there is no token.
        """
        n_concepts, vocab_size = self.num_concepts, self.teacher.vocab_size
        counts = torch.zeros(vocab_size, dtype=torch.int64)  # positions that hold the token
        keys = torch.zeros(0, dtype=torch.int64)  # token · n_concepts + concept, sorted
        sums = torch.zeros(0, dtype=torch.float64)  # of the concept's activations at the token's positions
        pending: list[tuple[Tensor, Tensor]] = []
        for batch in batches:
            codes, _ = self.teacher.active_concepts(batch, dtype=self.dtype)
            described = self.teacher.described(batch, None).cpu()
            tokens = batch.cpu()[described]  # [positions]
            ids, values = (part.cpu()[described] for part in codes)  # [positions, width]
            active = values > 0
            counts += torch.bincount(tokens, minlength=vocab_size)
            pending.append(((tokens[:, None] * n_concepts + ids)[active], values[active].double()))
            if sum(len(part) for part, _ in pending) > _PENDING:
                keys, sums, pending = *_summed([(keys, sums), *pending]), []
        if not counts.any():
            raise CoCoMixError("token_lookup needs tokens to learn its table from, and was given none.")
        keys, sums = _summed([(keys, sums), *pending])
        means = (sums / counts[keys // n_concepts]).float()
        return self.with_tables(_best_of_each_token(keys, means, vocab_size, n_concepts))

    def tables(self) -> dict[str, Tensor]:
        """`ids` int32 and `means` float32 [vocab, TABLE_WIDTH]: per token its concepts, best first, then `IGNORE`."""
        return dict(self._tables)

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """A labeller with the tables of an earlier `fit`."""
        return type(self)(self.teacher, sample_tokens=self.sample_tokens, dtype=self.dtype, tables=tables)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """See `ConceptLabeller.label`.

        Raises:
            CoCoMixError: k is larger than the table is wide, or there is no table yet.
        """
        self._require_table()
        if k > TABLE_WIDTH:
            raise CoCoMixError(f"token_lookup keeps {TABLE_WIDTH} concepts per token, so k must not be {k}.")
        labelled = self.teacher.labelled_positions(input_ids, attention_mask).cpu()[..., None]
        tokens = input_ids.cpu()
        ids = self._tables["ids"][tokens][..., :k].long().masked_fill(~labelled, IGNORE)
        return ConceptLabels(ids, self._tables["means"][tokens][..., :k].masked_fill(~labelled, 0.0))

    def fingerprint(self) -> dict[str, str]:
        """See `ConceptLabeller.fingerprint`; `table` is the hash of what was learned."""
        self._require_table()
        hashes = {name: tensor_sha256(tensor) for name, tensor in self._tables.items()}
        return {**super().fingerprint(), "table": fingerprint_json(hashes)}

    def flops_per_token(self, seq: int) -> float:
        """None: a table is read. The first pass costs what `activation` costs, on `sample_tokens` tokens."""
        return 0.0

    def _require_table(self) -> None:
        if not self._tables:
            raise CoCoMixError("this token_lookup labeller has no table yet; call fit first.")


def _summed(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values with equal keys added up: sorted keys and their sums."""
    keys, places = torch.unique(torch.cat([part for part, _ in parts]), return_inverse=True)
    sums = torch.zeros(len(keys), dtype=torch.float64)
    return keys, sums.index_add_(0, places, torch.cat([values for _, values in parts]))


def _best_of_each_token(keys: Tensor, means: Tensor, vocab_size: int, n_concepts: int) -> dict[str, Tensor]:
    """The table: of concepts with equal means the one with the lower number comes first."""
    order = means.argsort(descending=True, stable=True)
    order = order[(keys[order] // n_concepts).argsort(stable=True)]  # by token, then by falling mean
    tokens, concepts = keys[order] // n_concepts, keys[order] % n_concepts
    sizes = torch.bincount(tokens, minlength=vocab_size)
    places = torch.arange(len(tokens)) - (sizes.cumsum(0) - sizes)[tokens]
    kept = places < TABLE_WIDTH
    ids = torch.full((vocab_size, TABLE_WIDTH), IGNORE, dtype=torch.int32)
    table = torch.zeros(vocab_size, TABLE_WIDTH)
    ids[tokens[kept], places[kept]] = concepts[kept].int()
    table[tokens[kept], places[kept]] = means[order][kept]
    return {"ids": ids, "means": table}
