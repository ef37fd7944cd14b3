"""A dictionary as `cocomix sae` and `cocomix import` write it: SAELens' two files, and a manifest.

    DICTIONARY/
      cfg.json                   SAELens' own form, which its users and ours read
      sae_weights.safetensors
      manifest.json              what it is of, and how well the fit went (`DictionaryManifest`)

A folder of SAELens' without a manifest is read just as well.
"""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cocomix.artifacts import Artifact, Findings, Manifest
from cocomix.runtime.section import Section


class DictionaryFit(Section):
    """How well a dictionary describes a layer; see `cocomix.concepts.check` for the definitions."""

    fvu: float
    """Fraction of variance unexplained."""
    ce_clean: float
    """The teacher's own next-token loss, nats/token."""
    ce_dictionary: float
    """The loss with the layer's output replaced by its reconstruction."""
    ce_zero: float
    """The loss with the layer's output replaced by zeros."""
    positions: int
    """How many hidden states were compared."""

    @property
    def ce_recovered(self) -> float | None:
        """Cross-entropy recovered; None where zeros do not hurt the teacher, so that there is nothing to recover."""
        lost = self.ce_zero - self.ce_clean
        return (self.ce_zero - self.ce_dictionary) / lost if lost > 0 else None

    def describe(self) -> str:
        """Both numbers and what they are, for messages."""
        recovered = "undefined" if self.ce_recovered is None else f"{self.ce_recovered:.3f} (1 is best)"
        return f"FVU {self.fvu:.3f} (variance unexplained, 0 is best), cross-entropy recovered {recovered}"


class FitSettings(Section):
    """How a dictionary is fitted."""

    num_concepts: int = Field(default=2048, ge=2)
    """Latents of the autoencoder (C)."""
    k: int = Field(default=16, ge=1)
    """Active latents per position (K_SAE)."""
    tokens: int = Field(default=500_000, ge=1)
    """Positions to train on; read again from the start, in another order, if the data has fewer."""
    batch_size: int = Field(default=1024, ge=1)
    """Positions per step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of Adam, after a warm-up over the first 5% of the steps and until a linear decay over the last 20%."""
    dead_after_tokens: int = Field(default=20_000, ge=1)
    """A latent that was active at none of the last so many training positions counts as dead."""
    forward_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward pass of the teacher."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """What the teacher runs in, as `labels.dtype`; the autoencoder is trained, and its fit measured, in float32."""
    seed: int = 0
    """Of the initial weights and the order of the blocks."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the default dtype: dictionaries and sweeps from before it could be chosen are known by the rest."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if (name, value) != ("dtype", "float32")}

    def resolved(self) -> Self:
        """The settings with what `dtype: auto` is on this machine."""
        if self.dtype != "auto":
            return self
        from cocomix.runtime.device import auto_dtype, default_device  # imports PyTorch

        return self.model_copy(update={"dtype": auto_dtype(default_device())})

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // self.batch_size)

    @property
    def peak_learning_rate(self) -> float:
        """The given learning rate, or the one that follows from `num_concepts`."""
        return self.learning_rate if self.learning_rate is not None else 8e-3 * (2048 / self.num_concepts) ** 0.5


def fit_identity(teacher: str, layer: int, settings: FitSettings, **origin: Any) -> dict[str, Any]:
    """What determines a fitted dictionary, as JSON; `origin` is `tokens`, `revision` and `bos_token_id`."""
    return {"teacher": teacher, "layer": layer, **origin, "settings": settings.model_dump(mode="json")}


class FitReport(Section):
    """How well a fit went, and what it took."""

    fit: DictionaryFit  # FVU and cross-entropy on held-out blocks
    ce_recovered: float | None  # as `DictionaryFit.ce_recovered`
    dead_concepts: int  # latents active at none of the last `dead_after_tokens` training positions
    tokens: int  # positions trained on
    seconds: float  # training alone
    # by formula, of the teacher's blocks up to the layer and of the autoencoder, forward and backward; None of a
    # dictionary that was fitted before this was recorded
    flops: float | None = None
    tokens_per_second: float  # training alone
    sae_lens_version: str  # of the trainer


class DictionaryManifest(Manifest):
    """What a dictionary is of."""

    num_concepts: int
    """C."""
    dictionary_fingerprint: str
    """`ConceptDictionary.fingerprint`, as labels record it and recipes may pin it."""
    teacher: str | None = None
    """Name of the model it was fitted on; None of an imported one."""
    teacher_files: str | None = None
    """Hash of the files that it was loaded from; None of a hub name, and of dictionaries from before it was noted."""
    layer: int | None = None
    """0-based index of the block whose output it was fitted on; None where it is not known."""
    settings: FitSettings | None = None
    report: FitReport | None = None


class Dictionary(Artifact[DictionaryManifest]):
    """A dictionary's folder; `ConceptDictionary.from_sae_lens` reads its numbers."""

    kind = "dictionary"
    manifest_type = DictionaryManifest
    made_by = "cocomix sae"

    def check(self, findings: Findings) -> None:
        name, recorded = self.manifest.teacher, self.manifest.made_from.get("teacher")
        if name is None or recorded is None:
            findings.skip("teacher", "the teacher is not on this machine")
            return
        from cocomix.concepts.fingerprints import model_fingerprint  # both import PyTorch
        from cocomix.runtime.hub import load_causal_lm

        findings.source("teacher", name, recorded, lambda: model_fingerprint(load_causal_lm(name)))
