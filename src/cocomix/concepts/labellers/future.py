"""What labellers of coming words share: the tokens ahead in the same document, and how rare each token is.

They need no teacher. A document is the part of one that a block holds: it ends with its end-of-document token or with
the block, and no label looks beyond. What stands at its end, or where padding follows, has no label.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.labeller import ConceptLabeller, LabellerConfig, Vocabulary
from cocomix.concepts.labellers.learned_tables import TableLabeller
from cocomix.runtime.errors import CoCoMixError


class FutureConfig(LabellerConfig):
    """Settings that `future_words` and `future_clusters` share."""

    window: int = Field(default=16, ge=1)
    """How many of the following tokens are looked at."""
    sample_tokens: int = Field(default=2_000_000, ge=1)
    """Tokens of the training split that are learned from."""


class FutureLabeller(TableLabeller, ConceptLabeller):
    """A labeller that looks at the tokens ahead; `label` and `learned` are the subclass's.

    One table is `idf`, float32 [vocab]: ln(documents / documents that hold the token), with a token that the sample
    does not hold taken as rare as one that it holds once, and 0 for the tokens that begin or end a text. Labels are
    computed on `device`, the CPU if None, and chosen by `settings`, the fields of the kind's configuration.
    """

    config_type: ClassVar[type[FutureConfig]]

    def __init__(self, vocabulary: Vocabulary, *, device: torch.device | str | None = None, **settings: Any) -> None:
        super().__init__(sample_tokens=settings["sample_tokens"])
        self.vocabulary = vocabulary
        self.device = torch.device(device or "cpu")
        self.settings = settings
        self.window: int = settings["window"]

    @classmethod
    def build(
        cls,
        config: Any,
        *,
        device: torch.device | str | None = None,
        vocabulary: Vocabulary | None = None,
        force: bool = False,
    ) -> Self:
        """See `build_labeller`; there is nothing that `force` could allow."""
        if vocabulary is None:
            raise CoCoMixError(f"labels of kind {cls.kind} are of the data's own tokens; name its vocabulary.")
        return cls(vocabulary, device=device, **config.model_dump(exclude={"kind", "k"}))

    def layouts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
        return {"idf": (torch.float32, (self.vocabulary.size,))}

    def learned(self, rows: list[Tensor], idf: Tensor) -> dict[str, Tensor]:
        """The tables beside `idf`, from the sample's batches, int64 [batch, seq] each."""
        return {}

    def fit(self, batches: Iterable[Tensor]) -> Self:
        """Learn the tables from batches of token ids, int64 [batch, seq] each."""
        rows = [batch.cpu() for batch in batches if batch.numel()]
        if not rows:
            raise CoCoMixError(f"labels of kind {self.kind} need tokens to learn from, and there were none.")
        idf = self._idf(rows)
        return self.with_tables({"idf": idf, **self.learned(rows, idf)})

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        labeller = super().with_tables(tables)
        labeller._tables = {name: table.to(self.device) for name, table in tables.items()}
        return labeller

    def tables(self) -> dict[str, Tensor]:
        return {name: table.cpu() for name, table in super().tables().items()}

    def ahead(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next tokens of each position, int64 [batch, seq, window], and which of them are in its document, bool.

        Token j of the last axis stands j + 1 positions later.
        """
        input_ids = input_ids.to(self.device)
        documents = self._documents(input_ids, attention_mask)
        tokens, theirs = (
            F.pad(part, (0, self.window), value=-1).unfold(1, self.window, 1)[:, 1:] for part in (input_ids, documents)
        )
        same = (theirs == documents.unsqueeze(-1)) & (theirs >= 0)
        return tokens.masked_fill(~same, 0), same

    def fingerprint(self) -> dict[str, str]:
        return {
            "kind": self.kind,
            "algorithm": self.algorithm,
            **{name: str(value) for name, value in self.settings.items()},
            **{name: str(value) for name, value in self.vocabulary._asdict().items()},
            "table": self.table_hash(),
        }

    def _documents(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Number of each token's document in its row, −1 for padding. int64 [batch, seq]"""
        ends = input_ids == self.vocabulary.eos_token_id
        present = torch.ones_like(ends) if attention_mask is None else attention_mask.to(self.device).bool()
        if self.vocabulary.bos_token_id is not None:
            first = present & (present.cumsum(-1) == 1)
            ends = ends & ~(first & (input_ids == self.vocabulary.bos_token_id))  # GPT-2 begins and ends texts alike
        ended = (ends & present).long()
        return (ended.cumsum(-1) - ended).masked_fill(~present, -1)

    def _idf(self, rows: list[Tensor]) -> Tensor:
        size, documents = self.vocabulary.size, 0
        holding = torch.zeros(size, dtype=torch.int64)
        for batch in rows:
            numbers = self._documents(batch.to(self.device), None).cpu()
            numbers = numbers + torch.arange(len(batch)).unsqueeze(-1) * batch.shape[1]  # one number a document
            documents += len(torch.unique(numbers))
            pairs = torch.unique(numbers * size + batch)
            holding += torch.bincount(pairs % size, minlength=size)
        idf = math.log(documents) - holding.clamp(min=1).double().log()
        for token in (self.vocabulary.eos_token_id, self.vocabulary.bos_token_id):
            if token is not None:
                idf[token] = 0.0
        return idf.float()
