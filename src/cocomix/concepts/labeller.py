"""The labeller interface: blocks of tokens in, concept labels out; and the registry of its kinds.

A kind is a class with the interface of `LabellerKind`. Eight are built in (see `cocomix.concepts.labellers`); another
is added by `@register_labeller`, or by an entry point of the group `cocomix.labellers` whose name is the kind and whose
value is the class. Shards, disks and processes are unknown to a labeller.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.registry import Registry
from cocomix.runtime.section import Section

if TYPE_CHECKING:
    from cocomix.concepts.teacher import LoadedTeachers


class Vocabulary(NamedTuple):
    """What a labeller is told of the tokens that it will read."""

    size: int
    """Ids are below it."""
    eos_token_id: int
    """The token that every document ends with."""
    bos_token_id: int | None = None
    """The token that every text begins with, which gets no labels; None if texts begin with text."""


class ConceptLabels(NamedTuple):
    """The concepts chosen per position."""

    ids: Tensor
    """int64 [batch, seq, k], best first; `IGNORE` where there is no label."""
    scores: Tensor | None = None
    """float32 [batch, seq, k], what the kind ranks by, 0 where there is no label; None if there are none."""


def drop_without_target(concept_labels: Tensor, targets: Tensor) -> Tensor:
    """Labels with `IGNORE` at positions whose next token is no target, such as the end of a document kept apart.

    A teacher reads whole blocks, so at such a position it labels what follows, which the student is not to predict.
    `targets` [..., seq] are the tokens, `IGNORE` in place of those that are not predicted; labels are [..., seq, k].
    """
    without = targets.roll(-1, dims=-1) == IGNORE
    without[..., -1] = targets[..., -1] == IGNORE  # it has no next token: labels of a block end before it anyway
    return concept_labels.masked_fill(without.to(concept_labels.device).unsqueeze(-1), IGNORE)


class LabellerConfig(Section):
    """Settings of a labeller. Every kind has a subclass of its own, with `kind: Literal["…"] = "…"`."""

    kind: str
    """Name of the kind."""
    k: int = Field(default=4, ge=1, le=255)
    """Labels per position (K_attr; paper: 4); their number is stored in a byte."""

    def missing(self) -> tuple[str, ...]:
        """Names of settings without which the labeller cannot be built, such as a recipe for several may leave out."""
        return ()

    def resolved(self, device: torch.device) -> Self:
        """These settings with a value in place of every `auto`, as the device on which labels are made has it."""
        return self


class ConceptLabeller(Protocol):
    """Labels blocks of tokens, as the student sees them."""

    @property
    def num_concepts(self) -> int:
        """Label ids are below it."""

    @abstractmethod
    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """The k most fitting concepts of each position, on any device.

        Args:
            input_ids: int64 [batch, seq].
            attention_mask: [batch, seq], 1 = token, 0 = padding (left or right).
            k: labels per position. Positions with fewer fitting concepts have `IGNORE` in the last places.
        """

    def fingerprint(self) -> dict[str, str]:
        """What made the labels, by name: settings, `weights`, `dictionary`, `algorithm`…

        `algorithm` is a version that the kind raises when its labels change. `configuration` and `versions` are for
        people: labels are not refused for them.
        """

    def flops_per_token(self, seq: int) -> float:
        """Floating-point operations of `label` per token, in blocks of `seq` tokens."""

    def describe(self, concept: int) -> str | None:
        """What a concept stands for, in words; None, as here, where it is not known."""
        return None


@runtime_checkable
class FittedLabeller(Protocol):
    """A labeller that learns tables from a first pass over a sample of the corpus before it can label."""

    sample_tokens: int
    """How many tokens of the corpus `fit` is to be given."""

    def fit(self, batches: Iterable[Tensor]) -> Self:
        """A labeller that has learned from batches of token ids, int64 [batch, seq] each."""

    def tables(self) -> dict[str, Tensor]:
        """What was learned, to be stored beside the labels; empty before `fit`."""

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        """A labeller that has learned what `tables` says."""


class LabellerKind(Protocol):
    """The class of a labeller, as it is registered."""

    config_type: ClassVar[type[LabellerConfig]]

    @classmethod
    def build(
        cls, config: Any, *, device: torch.device | str | None, vocabulary: Vocabulary | None, force: bool = False
    ) -> ConceptLabeller:
        """Load what the labeller needs; arguments as in `build_labeller`.

        `force` is given only if set, and `teachers` only to kinds that have the settings of `TeacherLabellerConfig`.
        """


LABELLERS: Registry[LabellerKind] = Registry(
    "labeller of kind",
    "cocomix.labellers",
    {
        "attribution": "cocomix.concepts.labellers.attribution:AttributionLabeller",
        "activation": "cocomix.concepts.labellers.activation:ActivationLabeller",
        "random": "cocomix.concepts.labellers.random:RandomLabeller",
        "contextual": "cocomix.concepts.labellers.contextual:ContextualLabeller",
        "token_lookup": "cocomix.concepts.labellers.token_lookup:TokenLookupLabeller",
        "future_words": "cocomix.concepts.labellers.future_words:FutureWordsLabeller",
        "future_clusters": "cocomix.concepts.labellers.future_clusters:FutureClustersLabeller",
        "online": "cocomix.concepts.labellers.own_states:OnlineLabeller",
    },
)
register_labeller = LABELLERS.register
labeller_kinds = LABELLERS.names


def labeller_config(values: Mapping[str, Any] | LabellerConfig) -> LabellerConfig:
    """The settings of a labeller as its kind's class.

    Raises:
        CoCoMixError: there is no such kind.
        pydantic.ValidationError: a setting is unknown, missing or out of range.
    """
    if isinstance(values, LabellerConfig):
        return values
    return labeller_config_type(values.get("kind")).model_validate(values)


def labeller_config_type(kind: Any) -> type[LabellerConfig]:
    """The class of a kind's settings; refused where there is no such kind."""
    return LABELLERS.find(kind).config_type


def build_labeller(
    config: LabellerConfig,
    *,
    device: torch.device | str | None = None,
    vocabulary: Vocabulary | None = None,
    tables: Mapping[str, Tensor] | None = None,
    force: bool = False,
    teachers: "LoadedTeachers | None" = None,
) -> ConceptLabeller:
    """Load a labeller.

    Args:
        device: where its models run; the CPU if None.
        vocabulary: of the data; None where it is another's or unknown.
        tables: what an earlier `fit` learned, for a kind that has one.
        force: warn of what does not fit together where that is possible, instead of refusing it.
        teachers: where a labeller with a teacher finds it; it is loaded for this labeller alone if None.
    """
    options: dict[str, Any] = {"force": True} if force else {}
    options |= {} if teachers is None else {"teachers": teachers}
    labeller = LABELLERS.find(config.kind).build(config, device=device, vocabulary=vocabulary, **options)
    if not tables:
        return labeller
    if not isinstance(labeller, FittedLabeller):
        raise CoCoMixError(f"a labeller of kind {config.kind!r} learns no tables, but some were given; leave them out.")
    return labeller.with_tables(tables)
