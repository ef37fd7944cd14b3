"""How a recipe's `attribution` section chooses labels."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cocomix.concepts import (
    ActivationLabeller,
    AttributionLabeller,
    ConceptTeacher,
    DictionaryConfig,
    LabellerConfig,
    RandomLabeller,
    TeacherConfig,
    TeacherLabeller,
    labeller_config,
)

__all__ = ["LabelSettings"]


class LabelSettings(BaseModel):
    """How labels are chosen and stored.

    Attributes:
        activation: of `selection="attribution"`, see `cocomix.concepts.scoring`.
        gradient: of `selection="attribution"`, see `ConceptTeacher.label`.
        sign: of `selection="attribution"`, see `cocomix.concepts.scoring`.
        selection: the kind of labeller.
        seed: of `selection="random"`.
        dtype: `bfloat16` and `float16` run the teacher under autocast. Scores and the dictionary stay in float32.
        k: labels per position (K_attr).
        score_dtype: of the stored scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: Literal["latent", "pre"] = "latent"
    gradient: Literal["sequence", "next"] = "sequence"
    sign: Literal["loss", "logprob", "abs"] = "loss"
    selection: Literal["attribution", "activation", "random"] = "attribution"
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    k: int = Field(default=4, ge=1)
    score_dtype: Literal["float16", "float32"] = "float16"

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that play a part, as the labeller's configuration names them."""
        own = {"attribution": {"activation", "gradient", "sign"}, "random": {"seed"}, "activation": set()}
        return {"kind": self.selection, **self.model_dump(include={"k", "dtype", *own[self.selection]})}

    def config(self, teacher: TeacherConfig, dictionary: DictionaryConfig) -> LabellerConfig:
        """The configuration of the labeller that chooses labels so."""
        return labeller_config({**self.chosen, "teacher": teacher, "dictionary": dictionary})

    def labeller(self, teacher: ConceptTeacher) -> TeacherLabeller:
        """The labeller that chooses labels so."""
        if self.selection == "activation":
            return ActivationLabeller(teacher, dtype=self.dtype)
        if self.selection == "random":
            return RandomLabeller(teacher, seed=self.seed, dtype=self.dtype)
        options = self.model_dump(include={"activation", "gradient", "sign", "dtype"})
        return AttributionLabeller(teacher, **options)
