"""A run as one frozen, validated object: what a recipe file says.

A recipe is YAML. It may start from another with `base: other.yaml` (a path relative to itself), whose values it
overrides key by key, so that an ablation is as short as its difference. Precedence: defaults < base < recipe < `--set`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from cocomix.artifacts import write_text
from cocomix.concepts import LabellerConfig, TeacherConfig
from cocomix.model import MIXINGS, Mixing
from cocomix.model.configuration import CoCoMixConfig, Count
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section, describe_validation_error, settings_of
from cocomix.runtime.yaml_text import dump_yaml
from cocomix.training.objectives import Auxiliary, Schedule, auxiliary
from cocomix.training.recipe_data import BoundedConfig, CachedConfig, DataConfig, Folder, LabelsConfig, MixtureConfig
from cocomix.training.recipe_file import recipe_values, with_new_spelling


def _readable(version: Any) -> Any:
    if version != 1:
        raise ValueError(f"this cocomix reads version 1, not {version!r}; use the cocomix that it was written for")
    return version


RecipeVersion = Annotated[int, BeforeValidator(_readable)]
"""Version of the format of recipes and plans."""

OTHER_WORDS = {
    "lambda": "model.concept_loss_weight",
    "layer": "model.insert_layer",
    "topk": "model.concept_topk",
    "lr": "training.learning_rate",
    "batch_size": "batch_tokens",
    "steps": "training.max_steps",
    "epochs": "training.num_train_epochs",
    "sae": "labels.dictionary",
    "selection": "labels.kind",
    "kd": "distillation",
}
"""What other codes and the paper call fields of a recipe, to be told from an unknown field."""


MODEL_ARGUMENTS = settings_of(CoCoMixConfig)
_Arguments: Any = create_model("CoCoMixArguments", __base__=Section, __module__="pydantic", **MODEL_ARGUMENTS)


class StudentConfig(_Arguments):  # type: ignore[misc]
    """The model that is trained: the arguments of `CoCoMixConfig`, and where weights and sizes come from."""

    backbone: dict[str, Any] | str | None = None
    """A decoder's settings with its `model_type`, or a hub name or folder whose architecture (not weights) is taken. By
    default that of `pretrained`."""
    pretrained: str | None = None
    """Hub name, folder or GGUF file of a causal language model whose weights training starts from. Its tokenizer must
    be the data's. For a start at its own loss use `mixing: add`, `compression_init: zero` and `add_mean: false`."""
    revision: str | None = None
    """Commit, tag or branch of `pretrained`, or of a `backbone` on the hub; pin a commit to be able to repeat a run."""
    num_concepts: Count | None = None
    """C; by default the number of the labels' dictionary."""
    concept_loss_weight: Schedule = Schedule(value=MODEL_ARGUMENTS["concept_loss_weight"][1].default)
    """λ of Eq. 4 (paper: 0.1): a number, or how it changes during the run; see `Schedule`."""
    attn_implementation: str | None = None
    """Attention kernel as transformers names it; by default the best it finds."""

    @field_validator("mixing")
    @classmethod
    def _mixing_exists(cls, name: str) -> str:
        if name not in MIXINGS:
            raise ValueError(f"{name!r} is not one of {', '.join(MIXINGS)}")
        return name

    @property
    def form(self) -> type[Mixing]:
        """The form of mixing."""
        return MIXINGS[self.mixing]

    @model_validator(mode="after")
    def _architecture_is_given(self) -> "StudentConfig":
        if self.backbone is None and self.pretrained is None:
            raise ValueError("backbone or pretrained is needed: an architecture, or weights to start from")
        return self


class DistillationConfig(Section):
    """Knowledge distillation: λ_KD·KL(teacher ‖ student) of the next token, beside the objective's own losses.

    Of a folder of the kind `uld` or `alm`, that loss in the KL's place.
    """

    weight: Schedule = Schedule()
    """λ_KD (paper: 0.1): a number above 0, or how it changes during the run; see `Schedule`."""
    targets: Literal["online"] | Folder = "online"
    """`online`: `teacher` runs while training; or a folder written by `cocomix distill`. In a mixture every corpus may
    have its own."""

    @field_validator("weight")
    @classmethod
    def _weighs(cls, weight: Schedule) -> Schedule:
        if weight.peak == 0:
            raise ValueError("a weight of 0 is no distillation; leave the section out")
        return weight


class RunConfig(Section):
    """One training run."""

    version: RecipeVersion = 1
    """Of the format of recipes; a later one is refused by older versions of cocomix."""
    name: str | None = None
    """What tables call the run; by default the output folder's name."""
    objective: Literal["ntp", "cocomix"] = "cocomix"
    """`ntp` trains the plain decoder, `cocomix` the model with concepts."""
    baseline: Literal["matched", "flops"] | None = None
    """With `objective: ntp`, or with `model.mixing: pause` or another form without concepts: widen the decoder until
    its active parameters (`matched`) or the FLOPs of a token (`flops`) match the CoCoMix model of this recipe."""
    data: DataConfig
    """Folder written by `cocomix prepare`, its URL, a `mixture` of such, or, beyond the disk, `path` and `cache_gb`."""
    labels: LabelsConfig | None = None
    """Folder written by `cocomix label`; or how labels are made (`kind`, `teacher`, `dictionary`, `k` …), which is done
    while training; or both, with `path`. Needed by `cocomix` unless λ is 0; not read where no concepts are predicted
    (`ntp`, pause, hidden states). In a mixture every corpus has its own folder."""
    distillation: DistillationConfig | None = None
    """Adds knowledge distillation to any objective."""
    auxiliary: dict[str, SerializeAsAny[Auxiliary]] = Field(default_factory=dict)
    """Further objectives by name (docs/recipes.md): a weight, how it changes, or `weight` and settings of its own; with
    nothing, all as its paper has it."""
    first_blocks: int | None = Field(default=None, ge=1)
    """So many training blocks, from the beginning of the data, come before all others in every epoch: those that labels
    made with `--blocks` cover. Runs that are compared need the same number. Not in a mixture, nor with `cache_gb`."""
    teacher: TeacherConfig | None = None
    """Where distillation and hidden states come from; with stored probabilities optional, a check."""
    model: StudentConfig
    document_masks: bool = False
    """Documents packed into one block do not see each other; positions start again at each, and its first token is no
    target. Teachers still read whole blocks. Not with the kernels of `flash-attn`, which would ignore it."""
    tokens: int | None = Field(default=None, ge=1)
    """Training tokens, rounded up to whole steps; in place of `training.max_steps` or `training.num_train_epochs`."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an optimizer step, all processes together: micro-batches of `training.per_device_train_batch_size`
    blocks are accumulated until there are so many."""
    evaluation_blocks: int | None = Field(default=None, ge=1)
    """How many validation blocks the evaluations read; by default all."""
    non_finite: Literal["stop", "skip"] = "stop"
    """Gradients that are infinite or not a number stop training at the next log line, or their step changes nothing
    (ten in a row stop it; costs a wait for the device per step)."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Any field of `transformers.TrainingArguments`."""

    @model_validator(mode="before")
    @classmethod
    def _new_spelling(cls, values: Any) -> Any:
        return with_new_spelling(values) if isinstance(values, Mapping) else values

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _settings_of_objectives(cls, given: Any) -> Any:
        return {name: auxiliary(name, each) for name, each in given.items()} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "RunConfig":
        if self.baseline is not None and self.model.pretrained is not None:
            raise ValueError(f"baseline: {self.baseline} widens the decoder, so it cannot start from model.pretrained")
        widens = self.objective == "ntp" or self.model.form.widened(self.model)
        if self.baseline is not None and not widens:
            raise ValueError(f"baseline: {self.baseline} needs objective: ntp or model.mixing: pause")
        if isinstance(self.data, MixtureConfig):
            if self.labels is not None and self.labels.path is not None:
                raise ValueError("labels: a folder belongs to one corpus; give every corpus of data.mixture its own")
            if self.distillation is not None and self.distillation.targets != "online":
                raise ValueError("distillation.targets: a folder belongs to one corpus; give every corpus its targets")
            for field in ("labels", "targets"):
                given = [getattr(corpus, field) is not None for corpus in self.data.mixture]
                if any(given) != all(given):
                    raise ValueError(f"data.mixture: give {field} to every corpus or to none")
        weight = self.model.concept_loss_weight.peak
        if self.first_blocks is not None and (isinstance(self.data, MixtureConfig) or self.bounds is not None):
            raise ValueError(
                "first_blocks cannot be combined with data.mixture or data.cache_gb, which have other orders"
            )
        if self.has_concepts and self.labels is None and not self.label_folders and weight > 0:
            raise ValueError("objective: cocomix needs labels: FOLDER (written by `cocomix label`) or {kind: …}")
        if self.has_concepts and self.online_labels is not None and (missing := self.online_labels.missing()):
            raise ValueError(f"labels: {' and '.join(missing)} needed to make them while training")
        if self.predicts_hidden and not self.model.form.predicts:
            raise ValueError(f"model.prediction: hidden and model.mixing: {self.model.mixing} exclude each other")
        if self.predicts_hidden and self.teacher is None and weight > 0:
            raise ValueError("model.prediction: hidden needs teacher:")
        if self.distillation is not None and not self.target_folders and self.teacher is None:
            raise ValueError("distillation.targets: online needs teacher:")
        if self.document_masks and self.model.upper_positions == "token":
            raise ValueError("document_masks needs model.upper_positions: own")
        if self.document_masks and "flash" in (self.model.attn_implementation or ""):
            raise ValueError("document_masks needs model.attn_implementation eager, sdpa or flex_attention")
        if self.tokens is not None and {"max_steps", "num_train_epochs"} & set(self.training):
            raise ValueError("tokens and training.max_steps or training.num_train_epochs exclude each other")
        if self.batch_tokens is not None and "gradient_accumulation_steps" in self.training:
            raise ValueError("batch_tokens and training.gradient_accumulation_steps exclude each other")
        return self

    @property
    def data_folders(self) -> tuple[Path, ...]:
        """Where the prepared corpora are."""
        if isinstance(self.data, MixtureConfig):
            return tuple(corpus.path for corpus in self.data.mixture)
        return (self.data.path,) if isinstance(self.data, CachedConfig) else (self.data,)

    @property
    def bounds(self) -> BoundedConfig | None:
        """How much of the data this machine holds; `None` for all."""
        bounded = isinstance(self.data, BoundedConfig) and self.data.cache_gb is not None
        return self.data if bounded else None  # type: ignore[return-value]

    @property
    def label_folders(self) -> tuple[Path, ...]:
        """Where the labels of the corpora are; empty where none are stored."""
        if self.labels is not None and self.labels.path is not None:
            return (self.labels.path,)
        if isinstance(self.data, MixtureConfig):
            return tuple(corpus.labels for corpus in self.data.mixture if corpus.labels is not None)
        return ()

    @property
    def online_labels(self) -> LabellerConfig | None:
        """How labels are made while training; `None` where they are stored, or there are none."""
        return None if self.labels is None or self.label_folders else self.labels.labeller

    @property
    def target_folders(self) -> tuple[Path, ...]:
        """Where the teacher's probabilities of the corpora are; empty where it runs online or there is none."""
        if self.distillation is None:
            return ()
        if isinstance(self.distillation.targets, Path):
            return (self.distillation.targets,)
        if isinstance(self.data, MixtureConfig):
            return tuple(corpus.targets for corpus in self.data.mixture if corpus.targets is not None)
        return ()

    @property
    def has_concepts(self) -> bool:
        """Whether the model predicts concepts, so that labels are read."""
        return self.objective == "cocomix" and self.model.form.predicts and self.model.prediction == "concepts"

    @property
    def predicts_hidden(self) -> bool:
        """Whether the model predicts the teacher's hidden states."""
        return self.objective == "cocomix" and self.model.prediction == "hidden"

    @property
    def arm(self) -> str:
        """What sets the run apart in a comparison, e.g. `cocomix, residual, kd`; `cocomix` is the paper's form."""
        return self.arm_with("kd")

    def arm_with(self, distillation: str) -> str:
        """`arm`, its distillation called as the kind of its stored targets, which the recipe does not say."""
        model = self.model
        parts: list[str] = [self.objective]
        if self.objective == "cocomix":
            if not model.form.predicts:
                parts = []
            if model.form.arm:
                parts.append(model.form.arm)
            if self.predicts_hidden:
                parts.append(f"hidden {model.hidden_loss}")
            elif self.has_concepts and model.concept_loss_weight.peak == 0:
                parts.append("mixing only")
            if (self.has_concepts or self.predicts_hidden) and model.concept_loss_weight.changes:
                parts.append(f"λ {model.concept_loss_weight}")
            parts += model.form.options(model)
        if model.bigram_rows is not None:
            parts.append(f"bigram table, {model.bigram_rows:,} rows")
        if self.baseline is not None:
            parts.append({"matched": "matched", "flops": "same FLOPs"}[self.baseline])
        if self.distillation is not None:
            parts.append(distillation)
            if self.distillation.weight != Schedule():
                parts.append(f"λ_KD {self.distillation.weight}")
        parts += [settings.describe(name) for name, settings in self.auxiliary.items()]
        if model.pretrained is not None:
            parts.append("continued")
        return ", ".join(parts)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, with `a.b=value` assignments over it (values in YAML).

    Raises:
        CoCoMixError: the file is missing, no YAML mapping or a sweep's plan, or a field is unknown, missing or out of
            range.
    """
    values = recipe_values(path, overrides)
    if "arms" in values:
        raise CoCoMixError(
            f"{path} is a sweep's plan, not a recipe; run it by `cocomix sweep {path}`, or name the recipe of an arm."
        )
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise CoCoMixError(f"{path}: {describe_validation_error(error, RunConfig, OTHER_WORDS)}.") from None


def save_recipe(config: RunConfig, path: Path) -> None:
    """Write the resolved recipe; reading it back gives an equal object."""
    write_text(path, dump_yaml(config.model_dump(mode="json")))
