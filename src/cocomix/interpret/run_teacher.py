"""The teacher and dictionary that a run's concepts come from, found again from its recipe and labels."""

from typing import NamedTuple

from cocomix.concepts import (
    ConceptLabeller,
    ConceptTeacher,
    DictionaryConfig,
    TeacherConfig,
    TeacherLabeller,
    TeacherLabellerConfig,
    build_labeller,
    check_tokenizer,
)
from cocomix.data import Tokens
from cocomix.evaluation import Run, run_labels
from cocomix.labelling import LabelSettings
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe

__all__ = ["RunTeacher", "open_run_teacher"]


class RunTeacher(NamedTuple):
    """A teacher, and how it labelled.

    Attributes:
        teacher: with its dictionary, on the best device.
        labeller: labels texts as the run's were.
        k: labels per position.
    """

    teacher: ConceptTeacher
    labeller: ConceptLabeller
    k: int


def open_run_teacher(
    run: Run, data: Tokens, *, teacher: str | None = None, dictionary: str | None = None
) -> RunTeacher:
    """Load the teacher of a run's concepts.

    What is not given is taken from the run's recipe, and else from its labels.

    Args:
        run: a CoCoMix run.
        data: the run's data, whose tokens the teacher will read.
        teacher: hub name, folder or GGUF file of the teacher.
        dictionary: folder of its dictionary.

    Raises:
        CoCoMixError: teacher or dictionary cannot be found out or loaded, do not fit one another or the data, or the
            dictionary is not the one of the run's labels.
    """
    recipe = load_recipe(run.path / "recipe.yaml")
    store = run_labels(run)
    made = None if store is None else store.manifest.config()
    if made is not None and not isinstance(made, TeacherLabellerConfig):
        raise CoCoMixError(f"the labels in {run.manifest.name} are of kind {made.kind!r}, which has no teacher.")
    described, source = _dictionary(run, recipe, made, dictionary), _teacher(run, recipe, made, teacher)
    if made is None:
        config = (recipe.attribution or LabelSettings()).config(source, described)
    else:
        config = made.model_copy(update={"teacher": source, "dictionary": described})
    labeller = build_labeller(
        config,
        device=default_device(),
        bos_token_id=data.manifest.bos_token_id,
        tables=None if store is None else store.tables(),
    )
    assert isinstance(labeller, TeacherLabeller)
    opened = labeller.teacher
    if store is not None and opened.dictionary.fingerprint() != store.manifest.made_from["dictionary"]:
        raise CoCoMixError(
            f"the dictionary {opened.dictionary.name} is not the one the labels in {store.path} were made with, so its "
            "concepts are not the run's; give that one with --dictionary."
        )
    check_tokenizer(
        opened.vocab_size,
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        vocab_size=data.manifest.vocab_size,
        teacher_tokenizer_fingerprint=None,
    )
    return RunTeacher(opened, labeller, config.k)


def _teacher(run: Run, recipe: RunConfig, made: TeacherLabellerConfig | None, name: str | None) -> TeacherConfig:
    """Where the teacher is; its layer is the labels' or the recipe's."""
    known = recipe.teacher or (None if made is None else made.teacher)
    if known is None:
        raise CoCoMixError(
            f"which block the concepts of the run {run.manifest.name} describe is known neither from its recipe nor "
            "from its labels; put the label folder back to where it was."
        )
    if name is None:
        return known
    return TeacherConfig(model=name, layer=known.layer if made is None else made.teacher.layer)


def _dictionary(run: Run, recipe: RunConfig, made: TeacherLabellerConfig | None, path: str | None) -> DictionaryConfig:
    """Where the dictionary is."""
    known = recipe.dictionary or (None if made is None else made.dictionary)
    if path is not None:
        return DictionaryConfig(path=path)
    if known is None:
        raise CoCoMixError(
            f"the dictionary of the run {run.manifest.name} is named neither in its recipe nor by its labels; give it "
            "with --dictionary."
        )
    return known
