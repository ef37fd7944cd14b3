"""The teacher and dictionary that a run's concepts come from, found again from its recipe and labels."""

from pathlib import Path
from typing import NamedTuple

from cocomix.concepts import ConceptDictionary, ConceptLabeller, ConceptTeacher, load_teacher
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig
from cocomix.concepts.teacher import check_tokenizer
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.labelling import ConceptLabelStore, LabelSettings
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe

__all__ = ["RunTeacher", "open_run_teacher", "run_labels"]


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


def run_labels(run: Run) -> ConceptLabelStore | None:
    """The folder of labels the run was trained with, if it was and the folder is still there."""
    labels = run.manifest.labels
    return ConceptLabelStore.open(labels.path) if labels is not None and Path(labels.path).is_dir() else None


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
    source = _dictionary(run, recipe, store, dictionary)
    model = _teacher(run, recipe, store, teacher)
    loaded = ConceptDictionary.from_sae_lens(source.path, source.sae_id)
    if store is not None and loaded.fingerprint() != store.manifest.dictionary.fingerprint:
        raise CoCoMixError(
            f"the dictionary {loaded.name} is not the one the labels in {store.path} were made with, so its concepts "
            "are not the run's; give that one with --dictionary."
        )
    decoder = load_teacher(model.model, revision=model.revision, device=default_device())
    check_tokenizer(
        int(decoder.get_input_embeddings().weight.shape[0]),
        tokenizer_fingerprint=data.manifest.tokenizer_fingerprint,
        vocab_size=data.manifest.vocab_size,
        teacher_tokenizer_fingerprint=None,
    )
    settings = store.manifest.settings if store is not None else recipe.attribution or LabelSettings()
    concept_teacher = ConceptTeacher(
        decoder, loaded, model.layer, name=model.model, bos_token_id=data.manifest.bos_token_id
    )
    return RunTeacher(concept_teacher, settings.labeller(concept_teacher), settings.k)


def _teacher(run: Run, recipe: RunConfig, store: ConceptLabelStore | None, name: str | None) -> TeacherConfig:
    """Where the teacher is; its layer is the labels' or the recipe's."""
    if recipe.teacher is None and store is None:
        raise CoCoMixError(
            f"which block the concepts of the run {run.manifest.name} describe is known neither from its recipe nor "
            "from its labels; put the label folder back to where it was."
        )
    if recipe.teacher is not None and name is None:
        return recipe.teacher
    if store is not None:
        return TeacherConfig(model=name or store.manifest.teacher.name, layer=store.manifest.layer)
    assert recipe.teacher is not None
    return TeacherConfig(model=name or recipe.teacher.model, layer=recipe.teacher.layer)


def _dictionary(run: Run, recipe: RunConfig, store: ConceptLabelStore | None, path: str | None) -> DictionaryConfig:
    """Where the dictionary is. Labels note `RELEASE/ID` for one of a SAELens release."""
    if path is not None:
        return DictionaryConfig(path=path)
    if recipe.dictionary is not None:
        return recipe.dictionary
    if store is None:
        raise CoCoMixError(
            f"the dictionary of the run {run.manifest.name} is named neither in its recipe nor by its labels; give it "
            "with --dictionary."
        )
    name = store.manifest.dictionary.name
    release, _, sae_id = name.partition("/")
    return (
        DictionaryConfig(path=name)
        if Path(name).is_dir() or not sae_id
        else DictionaryConfig(path=release, sae_id=sae_id)
    )
