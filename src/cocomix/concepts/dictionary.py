"""The concept dictionary: a sparse autoencoder as plain tensors and pure functions.

A dictionary turns a teacher's hidden state `h` [d_model] into a few active concepts and back (method.md §1):

    x = (h − mean) / (std + 1e-5)      only with `normalize="layer_norm"`; std is the unbiased one
    x = h / std                        only with `normalize="constant_norm"`; std = ‖h‖ / √d_model, mean = 0
    x = h − mean                       only with `normalize="centre"`; std = 1 (TransformerLens' centred models)
    pre = (x − b_dec) W_enc + b_enc    [n_concepts]; b_dec is subtracted only with `subtract_b_dec`
    c = activation(pre)                TopK, JumpReLU or ReLU
    ĥ = (c W_dec + b_dec) · std + mean

Nothing is remembered between calls: the normalisation statistics are returned to whoever needs them for decoding.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.artifacts import fingerprint_json, tensor_sha256
from cocomix.concepts.saelens import open_sae, write_sae
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.top_k import top_k

DictionaryKind = Literal["topk", "jumprelu", "relu"]
Normalization = Literal["layer_norm", "constant_norm", "centre", "none"]

_LAYER_NORM_EPS = 1e-5
_CHUNK_ELEMENTS = 2**24  # pre-activations held at once: 64 MiB in float32 (our choice: fits caches of a small server)


class InputStatistics(NamedTuple):
    """What the normalisation took out of the hidden states, needed to put it back."""

    mean: Tensor  # [..., 1]
    std: Tensor  # [..., 1], unbiased, without the 1e-5 that the division adds; ‖h‖ / √d_model; or 1


class SparseCodes(NamedTuple):
    """Active concepts per position.

    `width` is k for a TopK dictionary and the largest number of active concepts at one position otherwise.
    """

    ids: Tensor
    """int64 [..., width]."""
    values: Tensor
    """Activations [..., width]; exactly zero in slots that are not used."""


def layer_normalize(hidden: Tensor) -> tuple[Tensor, InputStatistics]:
    """(h − mean) / (unbiased std + 1e-5) over the last dimension, and what was taken out.

    SAELens' and the released code's form; `torch.nn.functional.layer_norm` uses the biased variance and another eps.
    """
    mean = hidden.mean(dim=-1, keepdim=True)
    centred = hidden - mean
    std = centred.std(dim=-1, keepdim=True)
    return centred / (std + _LAYER_NORM_EPS), InputStatistics(mean, std)


@dataclass(frozen=True, eq=False)
class ConceptDictionary:
    """A sparse autoencoder used as a dictionary of concepts, in SAELens' orientation.

    Raises:
        CoCoMixError: shapes that do not fit, a k out of range, or both `k` and `threshold`.
    """

    W_enc: Tensor
    """[d_model, n_concepts]."""
    b_enc: Tensor
    """[n_concepts]."""
    W_dec: Tensor
    """[n_concepts, d_model]."""
    b_dec: Tensor
    """[d_model]."""
    _: KW_ONLY
    k: int | None = None
    """Active concepts per position; TopK only."""
    threshold: Tensor | None = None
    """[n_concepts], or one for all: a pre-activation must exceed it; JumpReLU only."""
    normalize: Normalization = "none"
    """`layer_norm`, `constant_norm`, `centre` or `none`; see the module's formulas."""
    subtract_b_dec: bool = True
    """Whether b_dec is subtracted from the (normalised) input: SAELens' `apply_b_dec_to_input`."""
    name: str = "tensors"
    """Where it came from, for messages and manifests."""
    prepend_bos: bool | None = None
    """Whether it is said to be fitted on contexts that begin with a begin-of-text token; `None` where nothing is said.
    It changes no number, and is not always true (see `cocomix.concepts.saelens`)."""
    layer: int | None = None
    """0-based index of the block whose output it is said to be fitted on; `None` where nothing is said."""

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2:
            raise CoCoMixError(f"W_enc must be a [d_model, n_concepts] matrix, not of shape {list(self.W_enc.shape)}.")
        d_model, n_concepts = self.W_enc.shape
        shapes = {"b_enc": (n_concepts,), "W_dec": (n_concepts, d_model), "b_dec": (d_model,)}
        for label, shape in shapes.items():
            if tuple(getattr(self, label).shape) != shape:
                raise CoCoMixError(
                    f"{label} has shape {list(getattr(self, label).shape)} but W_enc [d_model={d_model}, "
                    f"n_concepts={n_concepts}] asks for {list(shape)}; SAELens' orientation is W_enc [d_model, "
                    "n_concepts], W_dec the reverse."
                )
        if self.k is not None and self.threshold is not None:
            raise CoCoMixError("a dictionary is TopK (k) or JumpReLU (threshold), not both; give one of the two.")
        if self.k is not None and not 1 <= self.k <= n_concepts:
            raise CoCoMixError(f"k must be between 1 and the {n_concepts} concepts of the dictionary, not {self.k}.")
        if self.normalize not in get_args(Normalization):
            known = ", ".join(get_args(Normalization))
            raise CoCoMixError(f"normalize must be one of {known}, not {self.normalize!r}.")
        tensors = self.tensors()
        if self.threshold is not None:
            tensors["threshold"] = self.threshold.to(self.W_enc.dtype).expand(n_concepts)
        for label, tensor in tensors.items():
            object.__setattr__(self, label, tensor.detach().contiguous())

    @property
    def kind(self) -> DictionaryKind:
        """By what is given: `topk` (`k`), `jumprelu` (`threshold`; also SAELens' BatchTopK at inference), or `relu`."""
        return "topk" if self.k is not None else "relu" if self.threshold is None else "jumprelu"

    @classmethod
    def from_sae_lens(cls, release_or_path: str | Path, sae_id: str | None = None) -> "ConceptDictionary":
        """Load a SAELens autoencoder, in float32 on the CPU.

        Args:
            release_or_path: a folder that SAELens or `cocomix sae` wrote, or its URL;
                `hf://OWNER/REPOSITORY[@REVISION]/FOLDER`; or, with `sae_id`, a release of SAELens' registry or
                `OWNER/REPOSITORY` on the hub.
            sae_id: which autoencoder of the release, e.g. `blocks.5.hook_resid_post`; the folder in the repository.

        Raises:
            CoCoMixError: there is none, it is damaged, or what it computes is not known here.
        """
        return cls(**open_sae(str(release_or_path), sae_id))

    def save(self, folder: Path | str) -> None:
        """Write `cfg.json` and `sae_weights.safetensors` as SAELens saves an SAE for inference, over what is there."""
        write_sae(self, Path(folder))

    @property
    def d_model(self) -> int:
        """Width of the hidden states it reads."""
        return self.W_enc.shape[0]

    @property
    def n_concepts(self) -> int:
        """Number of concepts."""
        return self.W_enc.shape[1]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over settings and weights; the name, `prepend_bos`, `layer` and the device do not count."""
        settings = {
            "kind": self.kind,
            "k": self.k,
            "normalize": self.normalize,
            "subtract_b_dec": self.subtract_b_dec,
            "tensors": {name: tensor_sha256(tensor) for name, tensor in self.tensors().items()},
        }
        return fingerprint_json(settings)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ConceptDictionary":
        """The same dictionary with its tensors on another device or in another dtype."""
        moved: dict[str, Any] = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def standardize(self, hidden: Tensor) -> tuple[Tensor, InputStatistics | None]:
        """Normalise hidden states [..., d_model] as the dictionary asks; no statistics when it asks for nothing."""
        hidden = hidden.to(self.W_enc.dtype)
        if self.normalize == "layer_norm":
            return layer_normalize(hidden)
        if self.normalize == "centre":
            mean = hidden.mean(dim=-1, keepdim=True)
            return hidden - mean, InputStatistics(mean, torch.ones_like(mean))
        if self.normalize == "constant_norm":
            scale = hidden.norm(dim=-1, keepdim=True) / hidden.shape[-1] ** 0.5
            return hidden / scale.clamp_min(1e-12), InputStatistics(torch.zeros_like(scale), scale)
        return hidden, None

    def pre_activations(self, hidden: Tensor) -> Tensor:
        """Encoder output before the activation: hidden [..., d_model] to [..., n_concepts]. Dense; mind the size."""
        inputs, _ = self.standardize(hidden)
        if self.subtract_b_dec:
            inputs = inputs - self.b_dec
        return inputs @ self.W_enc + self.b_enc

    def latents(self, hidden: Tensor) -> Tensor:
        """Dense activations c: hidden [..., d_model] to [..., n_concepts]. For study and tests; see `encode`."""
        return self.densify(self.encode(hidden))

    def encode(self, hidden: Tensor) -> SparseCodes:
        """Active concepts of hidden states [..., d_model].

        Positions are encoded in chunks, so that the dense pre-activations of all of them are never held at once.
        """
        flat = hidden.reshape(-1, self.d_model)  # [positions, d_model]
        chunks = [self._activated(self.pre_activations(chunk)) for chunk in self.position_chunks(flat)]
        width = max(chunk.ids.shape[-1] for chunk in chunks)
        ids, values = (
            torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts]).reshape(*hidden.shape[:-1], width)
            for parts in zip(*chunks, strict=True)
        )
        return SparseCodes(ids, values)

    def densify(self, codes: SparseCodes) -> Tensor:
        """Sparse codes [..., width] as dense activations [..., n_concepts]."""
        dense = codes.values.new_zeros(*codes.values.shape[:-1], self.n_concepts)
        return dense.scatter_add_(-1, codes.ids, codes.values)  # add: unused slots share id 0 with value 0

    def decode(self, codes: SparseCodes, statistics: InputStatistics | None) -> Tensor:
        """Hidden states [..., d_model] from sparse codes; `statistics` are those `standardize` returned."""
        width = codes.ids.shape[-1]
        flat = F.embedding_bag(
            codes.ids.reshape(-1, width), self.W_dec, per_sample_weights=codes.values.reshape(-1, width), mode="sum"
        )
        hidden = flat.reshape(*codes.ids.shape[:-1], self.d_model) + self.b_dec
        if statistics is None:
            return hidden
        return hidden * statistics.std + statistics.mean

    def reconstruct(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., d_model] encoded and decoded again."""
        _, statistics = self.standardize(hidden)
        return self.decode(self.encode(hidden), statistics)

    def position_chunks(self, flat: Tensor) -> Sequence[Tensor]:
        """Split [positions, …] so that `chunk · n_concepts` stays bounded; no positions are one chunk."""
        return torch.split(flat, max(1, _CHUNK_ELEMENTS // self.n_concepts))

    def _activated(self, pre: Tensor) -> SparseCodes:
        """Active concepts of pre-activations [positions, n_concepts]."""
        if self.k is not None:
            values, ids = top_k(pre, self.k)
            return SparseCodes(ids, values.relu_())
        # The active entries of each row go into the first slots of a [positions, widest row] table.
        active = pre > 0 if self.threshold is None else (pre > 0) & (pre > self.threshold)
        counts = active.sum(dim=-1)
        width = int(counts.max()) if len(counts) else 0
        rows, columns = active.nonzero(as_tuple=True)
        first = counts.cumsum(0) - counts  # where each row begins in the flat list
        slots = torch.arange(len(rows), device=pre.device) - first[rows]
        ids = torch.zeros(len(pre), width, dtype=torch.long, device=pre.device)
        values = pre.new_zeros(len(pre), width)
        ids[rows, slots] = columns
        values[rows, slots] = pre[rows, columns]
        return SparseCodes(ids, values)

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by SAELens' names; `threshold` only where there is one."""
        tensors = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return tensors if self.threshold is None else {**tensors, "threshold": self.threshold}
