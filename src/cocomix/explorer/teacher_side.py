"""The teacher of a run with its dictionary, for steering it beside the student; or the reason why it is not at hand."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from cocomix.concepts import ConceptTeacher
from cocomix.evaluation import Run, open_run_data, run_labels
from cocomix.interpret import open_run_teacher
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import load_recipe

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

    @property
    def context(self) -> int:
        """How many tokens it takes at once."""
        return int(self.teacher.decoder.model.config.get_text_config().max_position_embeddings)


def open_teacher_side(run: Run, teacher: str | None, dictionary: str | None) -> TeacherSide | str:
    """Load the teacher and the dictionary that gave a run its concepts.

    Args:
        run: a CoCoMix run.
        teacher: Hub name or folder; by default the folder that the run's recipe or labels name. Nothing is downloaded
            unasked.
        dictionary: likewise.

    Returns:
        The teacher, or, where neither was named and none is at hand, one sentence that says why.

    Raises:
        CoCoMixError: one was named, and cannot be used for this run.
    """
    named = teacher is not None or dictionary is not None
    try:
        if not named:
            _refuse_download(run)
        opened = open_run_teacher(run, open_run_data(run), teacher=teacher, dictionary=dictionary)
    except CoCoMixError as error:
        if named:
            raise
        return f"The teacher is not at hand: {error}"
    return TeacherSide(opened.teacher)


def _refuse_download(run: Run) -> None:
    """Refuse a teacher that the recipe or the labels name but that is not on this machine."""
    labels, store = load_recipe(run.path / "recipe.yaml").labels, run_labels(run)
    made = {} if store is None else store.manifest.labels.get("teacher") or {}
    name = labels.teacher.model if labels is not None and labels.teacher is not None else made.get("model")
    if name is not None and not Path(name).exists():
        raise CoCoMixError(f"it is {name}, which is no folder here; give --teacher to load it.")
