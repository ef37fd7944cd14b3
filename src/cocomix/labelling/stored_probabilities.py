"""What a teacher predicts, on disk, for distillation without running the teacher again.

    FOLDER/
      manifest.json               `ProbabilitiesManifest`
      train-00000.log_probs.npy   [blocks, block_size, K] float16: the K largest, the likeliest first
      train-00000.ids.npy         the same shape, uint16 (up to 65,536 tokens) or uint32: their tokens; not of `uld`

Of the kind `alm` the arrays are `log_probs` [blocks, block_size], of the chunk of text that begins after a position,
and `lengths` [blocks, block_size] uint8, its tokens, 0 where none begins. Where there is no target, log-probabilities
are −∞ (teachers of another tokenizer, see `cocomix.labelling.distillers`). At K = 64 a token takes 256 bytes (our
choice), at K = 32 half of it, and of `alm` 3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cocomix.artifacts import Findings
from cocomix.data import TRAIN, Tokens, id_dtype
from cocomix.labelling.stored_arrays import Layout, StoredArrays, StoredBlocks, StoredManifest
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from torch import Tensor


ProbabilityDtype = Literal["float32", "bfloat16"]
TargetKind = Literal["top_k", "first_token", "uld", "alm"]
"""`top_k`: of a teacher of the data's tokenizer; the others: of any teacher, see `cocomix.labelling.distillers`."""
ALGORITHMS: dict[TargetKind, str] = {"top_k": "1", "first_token": "2", "uld": "1", "alm": "1"}
"""Each is raised whenever the same teacher and settings would give other targets than before."""
_SAMPLED = 2**16  # positions of which the content is measured


class ProbabilitiesManifest(StoredManifest):
    """What stored distributions are of."""

    teacher: str  # hub name, folder or GGUF file of the language model
    vocab_size: int  # of the tokenizer: the distributions are over that many tokens
    top_k: int  # probabilities kept per position; 0 of `alm`
    dtype: ProbabilityDtype  # what the teacher ran in
    targets: TargetKind = "top_k"  # what is stored
    # share of the first training positions that have a target; `None` of `top_k`, where all have
    with_target: float | None = None
    mass: float | None = None  # mean probability that is kept, over these; `None` of `top_k` and `alm`

    def contents(self) -> Any:
        chosen = self.model_dump(include={"vocab_size", "top_k", "dtype", "targets"}, exclude_defaults=True)
        return {"of": super().contents(), **chosen}

    @property
    def algorithm(self) -> str:
        """The version of what made the targets, see `ALGORITHMS`."""
        return str(self.identity["made_with"]["algorithm"])

    @property
    def layouts(self) -> dict[str, Layout]:
        return probability_layouts(self.block_size, self.top_k, self.vocab_size, self.targets)


def probability_layouts(
    block_size: int, top_k: int, vocab_size: int, targets: TargetKind = "top_k"
) -> dict[str, Layout]:
    """The arrays in which a kind of targets is stored."""
    half, every = np.dtype("<f2"), (block_size, top_k)
    if targets == "alm":
        return {"log_probs": Layout(half, (block_size,)), "lengths": Layout(np.dtype("u1"), (block_size,))}
    if targets == "uld":
        return {"log_probs": Layout(half, every)}
    return {"ids": Layout(id_dtype(vocab_size), every), "log_probs": Layout(half, every)}


class TeacherProbabilities(StoredArrays[ProbabilitiesManifest]):
    """A finished folder of distributions."""

    kind = "teacher_probabilities"
    manifest_type = ProbabilitiesManifest
    made_by = "cocomix distill"

    @property
    def complete(self) -> bool:
        """Whether the whole distribution over the student's tokens is stored."""
        return self.manifest.top_k == self.manifest.vocab_size and self.manifest.targets != "uld"

    @property
    def summary(self) -> str:
        made = self.manifest
        positions = f"{sum(map(made.tokens, made.splits)):,} positions"
        if made.targets == "top_k":
            return f"stored the {made.top_k:,} likeliest next tokens of {positions}"
        share = f"{made.with_target or 0:.1%} of {positions}"
        if made.targets == "alm":
            return f"stored the likelihood of the text that follows {share}"
        what = "likeliest first tokens" if made.targets == "first_token" else "largest probabilities, sorted,"
        return f"stored the {made.top_k:,} {what} after {share}, which hold {made.mass or 0:.1%} of the probability"

    @property
    def warnings(self) -> list[str]:
        made = self.manifest
        if made.with_target is None or made.with_target > 0:
            return []
        return [f"{self.path} has no target: no token of the data ends where one of the teacher's does."]

    @property
    def how_made(self) -> dict[str, Any]:
        made = self.manifest
        weights = made.made_from["weights"]
        settings = {"kind": made.targets, "algorithm": made.algorithm, "number of probabilities": made.top_k}
        return {"teacher": weights, **settings, "dtype": made.dtype}

    def differing(self, identity: Mapping[str, Any]) -> tuple[str, ...]:
        older = self.manifest.algorithm != ALGORITHMS[self.manifest.targets]
        return (*super().differing(identity), *(["algorithm"] if older else []))

    @classmethod
    def counted(cls, folder: Path, manifest: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
        if manifest["targets"] == "top_k":
            return {}
        rows = -(-_SAMPLED // manifest["block_size"])
        split = next(name for name in (TRAIN, *manifest["splits"]) if manifest["splits"].get(name))
        files = [f"{file['name']}.log_probs.npy" for file in manifest["splits"][split]]
        log_probs = np.concatenate([np.load(folder / file, mmap_mode="r")[:rows] for file in files])[:rows]
        has_target = np.isfinite(log_probs if manifest["targets"] == "alm" else log_probs[..., 0])
        found = {"with_target": float(has_target.mean())}
        if manifest["targets"] != "alm" and has_target.any():
            found["mass"] = float(np.exp(log_probs[has_target].astype(np.float32)).sum(-1).mean())
        return found

    def split(self, name: str, *, scattered: bool = False) -> "ProbabilityBlocks":
        return ProbabilityBlocks(self, name, scattered=scattered)

    def check(self, findings: Findings) -> None:
        from cocomix.concepts import load_teacher, model_fingerprint

        super().check(findings)
        name, recorded = self.manifest.teacher, self.manifest.made_from["weights"]
        findings.source("teacher", name, recorded, lambda: model_fingerprint(load_teacher(name)))

    def check_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if "ids" in arrays and int(arrays["ids"].max(initial=0)) >= self.manifest.vocab_size:
            raise CoCoMixError(f"{self.path} holds tokens that do not exist; {self._repair}.")


class ProbabilityBlocks(StoredBlocks[ProbabilitiesManifest]):
    """The targets of one split, block by block."""

    def __init__(self, store: TeacherProbabilities, split: str, *, scattered: bool = False) -> None:
        super().__init__(store, split, scattered=scattered)
        self.read = tuple(store.manifest.layouts)

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        """The arrays as `teacher_NAME`: `teacher_log_probs` float16; `teacher_ids`, `teacher_lengths` int64."""
        import torch

        arrays = {name: self.row(index, name) for name in self.read}
        return {
            f"teacher_{name}": torch.from_numpy(array.copy() if array.dtype.kind == "f" else array.astype(np.int64))
            for name, array in arrays.items()
        }
