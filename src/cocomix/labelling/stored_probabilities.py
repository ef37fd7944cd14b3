"""A teacher's next-token distributions on disk, for knowledge distillation without running the teacher again.

    FOLDER/
      manifest.json               `ProbabilitiesManifest`
      train-00000.ids.npy         [blocks, block_size, K] uint16 (up to 65,536 tokens) or uint32: the likeliest first
      train-00000.log_probs.npy   [blocks, block_size, K] float16

Only the K largest probabilities are kept (our choice: at K = 64, 256 bytes per token).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts import Findings
from cocomix.labelling.stored_arrays import Layout, StoredArrays, StoredBlocks, StoredManifest, id_dtype
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from torch import Tensor

    from cocomix.concepts import FrozenDecoder

__all__ = [
    "ProbabilitiesManifest",
    "ProbabilityBlocks",
    "ProbabilityDtype",
    "TeacherProbabilities",
    "top_probabilities",
]

ProbabilityDtype = Literal["float32", "bfloat16"]


class ProbabilitiesManifest(StoredManifest):
    """What stored distributions are of.

    Attributes:
        teacher: hub name, folder or GGUF file of the language model.
        vocab_size: of the tokenizer: the distributions are over that many tokens.
        top_k: probabilities kept per position.
        dtype: what the teacher ran in.
    """

    teacher: str
    vocab_size: int
    top_k: int
    dtype: ProbabilityDtype

    def contents(self) -> Any:
        """See `StoredManifest`."""
        return {"of": super().contents(), **self.model_dump(include={"vocab_size", "top_k", "dtype"})}

    @property
    def layouts(self) -> dict[str, Layout]:
        """See `StoredManifest`."""
        return probability_layouts(self.block_size, self.top_k, self.vocab_size)


def probability_layouts(block_size: int, top_k: int, vocab_size: int) -> dict[str, Layout]:
    """The arrays in which distributions are stored."""
    every = (block_size, top_k)
    return {"ids": Layout(id_dtype(vocab_size), every), "log_probs": Layout(np.dtype("<f2"), every)}


class TeacherProbabilities(StoredArrays[ProbabilitiesManifest]):
    """A finished folder of distributions."""

    kind = "teacher_probabilities"
    manifest_type = ProbabilitiesManifest
    made_by = "cocomix distill"

    @property
    def complete(self) -> bool:
        """Whether the whole distribution is stored."""
        return self.manifest.top_k == self.manifest.vocab_size

    @property
    def summary(self) -> str:
        """See `StoredArrays`."""
        positions = sum(map(self.manifest.tokens, self.manifest.splits))
        return f"stored the {self.manifest.top_k:,} likeliest next tokens of {positions:,} positions"

    @property
    def how_made(self) -> dict[str, Any]:
        """See `StoredArrays`."""
        made = self.manifest
        return {"teacher": made.made_from["weights"], "number of probabilities": made.top_k, "dtype": made.dtype}

    def split(self, name: str, *, scattered: bool = False) -> "ProbabilityBlocks":
        """See `StoredArrays`."""
        return ProbabilityBlocks(self, name, scattered=scattered)

    def check(self, findings: Findings) -> None:
        """See `Artifact`; also the teacher."""
        from cocomix.concepts import load_teacher, model_fingerprint

        super().check(findings)
        name, recorded = self.manifest.teacher, self.manifest.made_from["weights"]
        findings.source("teacher", name, recorded, lambda: model_fingerprint(load_teacher(name)))

    def check_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See `StoredArrays`."""
        if int(arrays["ids"].max(initial=0)) >= self.manifest.vocab_size:
            raise CoCoMixError(f"{self.path} holds tokens that do not exist; {self._repair}.")


class ProbabilityBlocks(StoredBlocks[ProbabilitiesManifest]):
    """The distributions of one split, block by block."""

    read = ("ids", "log_probs")

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        """`teacher_ids` int64 and `teacher_log_probs` float16, [block_size, K] each."""
        import torch

        ids, log_probs = self.row(index, "ids").astype(np.int64), self.row(index, "log_probs").copy()
        return {"teacher_ids": torch.from_numpy(ids), "teacher_log_probs": torch.from_numpy(log_probs)}


def top_probabilities(
    decoder: "FrozenDecoder", input_ids: "Tensor", top_k: int, vocab_size: int, dtype: ProbabilityDtype = "float32"
) -> "tuple[Tensor, Tensor]":
    """The K likeliest next tokens of int64 [batch, seq], and their log-probabilities.

    Log-probabilities are taken in float32, and over the first `vocab_size` tokens: a head padded beyond them is cut.

    Returns:
        int64 and float32, [batch, seq, K] each, on the CPU, the likeliest first.
    """
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        states, head = decoder.predictions(input_ids.to(decoder.device), dtype=getattr(torch, dtype))
        ids, log_probs = [], []
        for row in states:  # logits of one row at a time
            if head is not None:
                row = F.linear(row, head.weight.to(row.dtype), None if head.bias is None else head.bias.to(row.dtype))
            best = row[:, :vocab_size].log_softmax(-1, dtype=torch.float32).topk(top_k, dim=-1)
            ids.append(best.indices.cpu())
            log_probs.append(best.values.cpu())
        return torch.stack(ids), torch.stack(log_probs)
