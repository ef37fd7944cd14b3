"""What the explorer shows: one run, loaded once and shared by all users, and never changed by any of them."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.evaluation import Comparison, Run, compare, inference
from cocomix.explorer.limits import LIMITS, Limits, whole_number
from cocomix.explorer.teacher_side import TeacherSide, open_teacher_side
from cocomix.interpret import ConceptAtlas, concept_model, default_atlas_folder, describe_run_concepts, encode
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError

__all__ = ["Subject", "open_subject"]


@dataclass(frozen=True)
class Subject:
    """A run and everything known about it.

    Attributes:
        run: the run.
        model: its model, on the best device, in evaluation mode.
        tokenizer: the model's.
        atlas: what is known of its concepts; `None` without one.
        teacher: the teacher with its dictionary, for steering it too, or the sentence that says why it is not there.
        comparison: the run beside others; `None` where none were named.
        limits: what users may ask.
        lock: held while the model computes.
    """

    run: Run
    model: CoCoMixForCausalLM
    tokenizer: PreTrainedTokenizerBase
    atlas: ConceptAtlas | None
    teacher: TeacherSide | str
    comparison: Comparison | None
    limits: Limits = LIMITS
    lock: threading.Lock = field(default_factory=threading.Lock)
    _described: dict[int, str] = field(default_factory=dict)

    @property
    def num_concepts(self) -> int:
        """C, the number of concepts."""
        return int(self.model.config.num_concepts)

    @contextmanager
    def computing(self) -> Iterator[CoCoMixForCausalLM]:
        """The model, for this thread alone and without gradients, while the block runs."""
        with self.lock, inference(self.model, self.model.device, self.model.dtype):
            yield self.model

    def encode(self, prompt: str, *, room: int = 0) -> Tensor:
        """Tokens of a prompt. [1, seq], int64

        Raises:
            CoCoMixError: it is empty, too long, or leaves no room for the tokens to generate.
        """
        limits = self.limits
        if len(prompt) > limits.prompt_characters:
            raise CoCoMixError(
                f"the text has {len(prompt):,} characters; the explorer takes {limits.prompt_characters:,} at most."
            )
        input_ids = encode(self.model, self.tokenizer, prompt)
        length = input_ids.shape[1]
        if length + room > limits.tokens:
            more = f" and {room} more are to be generated" if room else ""
            raise CoCoMixError(
                f"the text has {length:,} tokens{more}; {limits.tokens} at most fit here, so shorten it."
            )
        return input_ids

    def concept(self, value: object) -> int:
        """A concept's index from what somebody typed.

        Raises:
            CoCoMixError: it is no whole number from 0 to C − 1.
        """
        return whole_number(value, "concept", 0, self.num_concepts - 1)

    def names(self, concepts: Iterable[int]) -> dict[int, str]:
        """What concepts are called: the atlas' name, else the tokens they label in the run's data, else nothing."""
        wanted = set(concepts)
        if self.atlas is not None:
            return {concept: self.atlas.name(concept) for concept in wanted}
        unknown = sorted(wanted - self._described.keys())
        if unknown:
            found = describe_run_concepts(self.run, unknown)
            for concept in unknown:
                self._described[concept] = found[concept].name if concept in found else ""
        return {concept: self._described[concept] for concept in wanted}


def open_subject(
    run_folder: Path,
    *,
    atlas: Path | None = None,
    compare_with: Sequence[Path] = (),
    teacher: str | None = None,
    dictionary: str | None = None,
) -> Subject:
    """Load a run to explore.

    Args:
        run_folder: written by `cocomix train`.
        atlas: folder written by `cocomix atlas`; by default `RUN_atlas` beside the run, where it exists.
        compare_with: other runs for the comparison.
        teacher: Hub name or folder of the teacher; by default the one that the run's labels name.
        dictionary: its dictionary, likewise.

    Raises:
        CoCoMixError: the run has no concepts, the atlas is of another run, the runs cannot be compared, or what was
            named cannot be read.
    """
    run = Run.open(run_folder)
    model = concept_model(run.model())
    model.to(default_device())
    if atlas is None and default_atlas_folder(run.path).is_dir():
        atlas = default_atlas_folder(run.path)
    beside = open_teacher_side(run, teacher, dictionary)
    contexts = [model.config.max_position_embeddings]
    if isinstance(beside, TeacherSide):
        contexts.append(beside.context)
    return Subject(
        run=run,
        model=model,
        tokenizer=run.tokenizer(),
        atlas=None if atlas is None else ConceptAtlas.open(atlas, run=run),
        teacher=beside,
        comparison=_compared(run, [Run.open(path) for path in compare_with]),
        limits=LIMITS.within(min(contexts)),
    )


def _compared(run: Run, others: Sequence[Run]) -> Comparison | None:
    """The run beside others, against the NTP run among them, or else against the run itself."""
    if not others:
        return None
    runs = [run, *others]
    baseline = None if any(one.manifest.objective == "ntp" for one in runs) else run.manifest.name
    return compare(runs, baseline)
