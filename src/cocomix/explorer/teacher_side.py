"""The teacher of a run with its dictionary, for steering it beside the student; or the reason why it is not at hand."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from cocomix.concepts import ConceptDictionary, ConceptLabelStore, ConceptTeacher, check_tokenizer, load_teacher
from cocomix.data import load_tokenizer, tokenizer_fingerprint
from cocomix.device import default_device
from cocomix.errors import CoCoMixError
from cocomix.evaluation import Run
from cocomix.pipeline import layer_of_dictionary

__all__ = ["TeacherSide", "open_teacher_side"]


@dataclass(frozen=True)
class TeacherSide:
    """A teacher that is steered.

    Attributes:
        teacher: model, dictionary and layer.
        lock: held while it computes.
    """

    teacher: ConceptTeacher
    lock: threading.Lock = field(default_factory=threading.Lock)


def open_teacher_side(run: Run, teacher: str | None, dictionary: str | None) -> TeacherSide | str:
    """Load the teacher and the dictionary that gave a run its concepts.

    Args:
        run: a CoCoMix run.
        teacher: Hub name or folder; by default the folder that the run's labels name. Nothing is downloaded unasked.
        dictionary: folder or release; likewise.

    Returns:
        The teacher, or, where neither was named and none is at hand, one sentence that says why.

    Raises:
        CoCoMixError: one was named, and cannot be used for this run.
    """
    if teacher is None and dictionary is None:
        try:
            return _load(run, teacher, dictionary)
        except CoCoMixError as error:
            return f"The teacher is not at hand: {error}"
    return _load(run, teacher, dictionary)


def _load(run: Run, teacher: str | None, dictionary: str | None) -> TeacherSide:
    reference = run.manifest.labels
    layer = None if dictionary is None else layer_of_dictionary(dictionary)
    if teacher is None or dictionary is None:
        if reference is None or not Path(reference.path).is_dir():
            raise CoCoMixError("the run's labels are not where it found them; name --teacher and --dictionary.")
        labels = ConceptLabelStore.open(reference.path).manifest
        teacher = teacher or _local("teacher", labels.teacher.name)
        if dictionary is None:
            dictionary, layer = _local("dictionary", labels.dictionary.name), labels.layer
    assert layer is not None  # given with the dictionary, or noted in the labels
    side = ConceptTeacher(
        load_teacher(teacher, device=default_device()), ConceptDictionary.from_sae_lens(dictionary), layer, name=teacher
    )
    _check(run, side, teacher)
    return TeacherSide(side)


def _local(what: str, name: str) -> str:
    """A folder on this machine."""
    if not Path(name).exists():
        raise CoCoMixError(f"the run's labels name the {what} {name}, which is no folder here; name it with --{what}.")
    return name


def _check(run: Run, side: ConceptTeacher, source: str) -> None:
    """Refuse a teacher of another tokenizer, and a dictionary of another number of concepts."""
    tokenizer = run.tokenizer()
    try:
        own: str | None = tokenizer_fingerprint(load_tokenizer(source))
    except CoCoMixError:  # a folder with weights only
        own = None
    check_tokenizer(
        side.vocab_size,
        tokenizer_fingerprint=run.manifest.data.tokenizer_fingerprint,
        vocab_size=len(tokenizer),
        teacher_tokenizer_fingerprint=own,
    )
    concepts = run.model().config.num_concepts
    if side.n_concepts != concepts:
        raise CoCoMixError(
            f"the dictionary has {side.n_concepts} concepts but the run {concepts}; use the one its labels are from."
        )
