"""The teacher and dictionary that a run's concepts come from, found again from its recipe and labels."""

from pathlib import Path
from typing import NamedTuple

from cocomix.concepts import (
    AlignedTeacher,
    AttributionConfig,
    ConceptLabeller,
    ConceptTeacher,
    DictionaryConfig,
    OnlineConfig,
    TeacherConfig,
    TeacherLabeller,
    TeacherLabellerConfig,
)
from cocomix.data import Tokens
from cocomix.evaluation import Run, run_labels
from cocomix.labelling import load_labeller
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.online import kept_labeller
from cocomix.training.recipe import load_recipe


class RunTeacher(NamedTuple):
    """A teacher, and how it labelled.

    Attributes:
        teacher: with its dictionary, on the best device.
        labeller: labels texts as the run's were; an `AlignedTeacher` where the teacher has another tokenizer.
        k: labels per position.
    """

    teacher: ConceptTeacher
    labeller: ConceptLabeller
    k: int


def open_run_teacher(
    run: Run, data: Tokens, *, teacher: str | None = None, dictionary: str | None = None, download: bool = True
) -> RunTeacher:
    """Load the teacher of a run's concepts.

    What is not given is taken from the run's recipe, and else from its labels.

    Args:
        teacher: hub name, folder or GGUF file of the teacher.
        dictionary: folder of its dictionary.
        download: whether a teacher that is not on this machine is fetched; otherwise it is refused.

    Raises:
        CoCoMixError: teacher or dictionary cannot be found out or loaded, do not fit one another or the data, or the
            dictionary is not the one of the run's labels.
    """
    named = load_recipe(run.path / "recipe.yaml").labels
    store = run_labels(run)
    config = store.manifest.config() if store is not None else None if named is None else named.labeller
    if isinstance(config, OnlineConfig):
        config = kept_labeller(run.path, config)
    if config is not None and not isinstance(config, TeacherLabellerConfig):
        raise CoCoMixError(
            f"the labels of the run {run.manifest.name} are of kind {config.kind!r} and have no teacher, which is "
            "needed here; choose a run whose labels name concepts of a dictionary."
        )
    config = config or AttributionConfig()
    layer = None if config.teacher is None else config.teacher.layer
    known, described = config.teacher, config.dictionary
    if named is not None:  # the recipe names places, which may have moved since labels were made
        known, described = named.teacher or known, named.dictionary or described
    if dictionary is not None:
        described = DictionaryConfig(path=dictionary)
    if described is None:
        raise CoCoMixError(
            f"the dictionary of the run {run.manifest.name} is named neither in its recipe nor by its labels; give it "
            "with --dictionary."
        )
    if known is None:
        raise CoCoMixError(
            f"which block the concepts of the run {run.manifest.name} describe is known neither from its recipe nor "
            "from its labels; put the label folder back to where it was."
        )
    if teacher is not None:
        known = TeacherConfig(model=teacher, layer=known.layer if layer is None else layer)
    if not download and not Path(known.model).exists():
        raise CoCoMixError(f"it is {known.model}, which is no folder here; give --teacher to load it.")
    config = config.model_copy(update={"dictionary": described, "teacher": known})
    tables = None if store is None else store.tables()
    # By force: what the run was labelled with was tried then.
    labeller = load_labeller(data, config, device=default_device(), tables=tables, force=True)
    inner = labeller.inner if isinstance(labeller, AlignedTeacher) else labeller
    assert isinstance(inner, TeacherLabeller)
    opened = inner.teacher
    if store is not None and opened.dictionary.fingerprint() != store.manifest.made_from["dictionary"]:
        raise CoCoMixError(
            f"the dictionary {opened.dictionary.name} is not the one the labels in {store.path} were made with, so its "
            "concepts are not the run's; give that one with --dictionary."
        )
    return RunTeacher(opened, labeller, config.k)
