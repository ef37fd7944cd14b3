"""What the labellers with a teacher and a dictionary have in common."""

from copy import copy
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from cocomix.concepts.decoder import NumberFormat
from cocomix.concepts.dictionary import SparseCodes
from cocomix.concepts.fingerprints import configuration_fingerprint, model_fingerprint, package_versions
from cocomix.concepts.labeller import LABELLERS, ConceptLabeller, LabellerConfig, Vocabulary
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig
from cocomix.concepts.teacher import ConceptTeacher, LoadedTeachers
from cocomix.runtime.device import auto_dtype
from cocomix.runtime.errors import CoCoMixError


class TeacherLabellerConfig(LabellerConfig):
    """Settings of a labeller with a teacher and a dictionary."""

    teacher: TeacherConfig | None = None
    """The frozen language model. A recipe may leave it and the dictionary to the options of `cocomix label`."""
    dictionary: DictionaryConfig | None = None
    """The sparse autoencoder on its hidden state."""
    dtype: NumberFormat | Literal["auto"] = "float32"
    """`bfloat16` and `float16` run the teacher under autocast. Scores and the dictionary stay in float32. `auto` is
    `bfloat16` on a GPU and on a CPU with AMX, else `float32`; stored labels say which it was."""

    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in ("teacher", "dictionary") if getattr(self, name) is None)

    def choices(self) -> dict[str, Any]:
        """The settings by which labels are chosen: arguments of the labeller beside its teacher."""
        return self.model_dump(exclude={"kind", "k", "teacher", "dictionary"})

    def resolved(self, device: torch.device) -> Self:
        return self if self.dtype != "auto" else self.model_copy(update={"dtype": auto_dtype(device)})


class TeacherLabeller(ConceptLabeller):
    """A labeller with a teacher and a dictionary. Subclasses choose the labels, which are on the teacher's device.

    `settings` are those of the kind's configuration beside teacher and dictionary.
    """

    kind: ClassVar[str]
    algorithm: ClassVar[str] = "1"
    """Raised whenever the same teacher, dictionary and settings would give other labels than before."""
    config_type: ClassVar[type[TeacherLabellerConfig]]
    reads_hidden: ClassVar[bool] = False
    """Whether labels are made of the teacher's hidden states alone, which a forward pass for another purpose gives."""

    def __init__(self, teacher: ConceptTeacher, **settings: Any) -> None:
        self.teacher = teacher
        self.settings = self.config_type(**settings).choices()
        self.dtype: NumberFormat = self.settings.pop("dtype")

    @classmethod
    def build(
        cls,
        config: Any,
        *,
        device: torch.device | str | None = None,
        vocabulary: Vocabulary | None = None,
        force: bool = False,
        teachers: LoadedTeachers | None = None,
    ) -> Self:
        """Load teacher and dictionary; see `cocomix.concepts.labeller.build_labeller`."""
        if missing := config.missing():
            raise CoCoMixError(f"labels of kind {config.kind!r} are made with a {' and a '.join(missing)}; name them.")
        config = config.resolved(torch.device(device or "cpu"))
        source, dictionary = config.teacher, config.dictionary.load()
        model = (teachers or LoadedTeachers()).model(source, device)
        begin = None if vocabulary is None else vocabulary.bos_token_id
        teacher = ConceptTeacher(model, dictionary, source.layer, name=source.model, bos_token_id=begin, force=force)
        return cls(teacher, **config.choices())

    @property
    def num_concepts(self) -> int:
        return self.teacher.n_concepts

    def present(self, input_ids: Tensor, codes: SparseCodes) -> SparseCodes:
        """How much of each active concept a text [batch, seq] has: its activations, `codes` [batch, seq, width]."""
        return codes

    def with_dtype(self, dtype: NumberFormat) -> Self:
        """The same labeller with the same teacher in another number format."""
        labeller = copy(self)
        labeller.dtype = dtype
        return labeller

    def fingerprint(self) -> dict[str, str]:
        model = self.teacher.decoder.model
        return {
            "kind": self.kind,
            "algorithm": self.algorithm,
            "weights": model_fingerprint(model),
            "dictionary": self.teacher.dictionary.fingerprint(),
            "layer": str(self.teacher.layer),
            "bos_token_id": str(self.teacher.bos_token_id),
            "dtype": self.dtype,
            **{name: str(value) for name, value in self.settings.items()},
            "configuration": configuration_fingerprint(model),
            "versions": package_versions(),
        }

    def flops_per_token(self, seq: int) -> float:
        """Forward FLOPs of the blocks up to the hooked one, and of the dictionary's encoder."""
        below = self.teacher.decoder.flops_per_token(seq, up_to="layer")
        return below + 2.0 * self.num_concepts * self.teacher.decoder.d_model


def reads_hidden(config: LabellerConfig) -> bool:
    """Whether labels of a kind are made of a teacher's hidden states alone (`TeacherLabeller.reads_hidden`)."""
    kind: Any = LABELLERS.find(config.kind)
    return issubclass(kind, TeacherLabeller) and kind.reads_hidden
