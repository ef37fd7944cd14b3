"""What the explorer shows: one run, loaded once and shared by all visitors, and how much each may ask of it."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.concepts import AlignedTeacher, ConceptTeacher
from cocomix.evaluation import Comparison, Run, compare, open_run_data
from cocomix.interpret import (
    ConceptAtlas,
    ConceptHit,
    concept_model,
    default_atlas_folder,
    describe_run_concepts,
    encode,
    open_run_teacher,
)
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError

# How much a visitor may ask. Our choice: what a laptop answers within seconds.
MOST_CHARACTERS = 8_000  # of a text
MOST_WORDS = 200  # of a search or of a hint, in characters
MOST_TOKENS = 512  # of a text, a prompt and its continuation together
MOST_NEW_TOKENS = 200  # to generate per text
MOST_EDITS = 5  # concepts turned at once
MOST_VALUE = 40.0  # size of a steering value
RUNNING, WAITING = 2, 256  # requests that compute at once, and that wait; further ones are told to come back


@dataclass(frozen=True, eq=False)
class Subject:
    """A run and everything known about it.

    Attributes:
        model: its model, on the best device, in evaluation mode.
        atlas: what is known of its concepts; `None` without one.
        teacher: the teacher with its dictionary, for steering it too, or the sentence that says why it is not there.
        comparison: the run beside others; `None` where none were named.
        tokens: most tokens of a text, a prompt and its continuation together.
        lock: held while the model or the teacher computes.
    """

    run: Run
    model: CoCoMixForCausalLM
    tokenizer: PreTrainedTokenizerBase
    atlas: ConceptAtlas | None
    teacher: ConceptTeacher | str
    comparison: Comparison | None
    tokens: int = MOST_TOKENS
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fingerprint(self) -> str:
        """Beginning of the run's fingerprint, by which links name it."""
        return self.run.manifest.fingerprint[:12]

    @property
    def num_concepts(self) -> int:
        """C, the number of concepts."""
        return int(self.model.config.num_concepts)

    @property
    def new_tokens(self) -> int:
        """Most tokens to generate: half of a text."""
        return max(1, min(MOST_NEW_TOKENS, self.tokens // 2))

    def encode(self, text: str, *, room: int = 0) -> Tensor:
        """Tokens of a text that is not empty and leaves room for so many to be generated. [1, seq], int64"""
        input_ids = encode(self.model, self.tokenizer, text)
        length = input_ids.shape[1]
        if length + room > self.tokens:
            more = f" and {room} more are to be generated" if room else ""
            raise CoCoMixError(f"the text has {length:,} tokens{more}; at most {self.tokens} fit; shorten it.")
        return input_ids

    def find(self, text: str, limit: int = 24) -> list[ConceptHit]:
        """Concepts that a number or words mean, best first; refused where there is no concept of this number, or words
        need an atlas that is not there.
        """
        text = text.strip()
        if text.lstrip("-").isdecimal() and not 0 <= int(text) < self.num_concepts:
            raise CoCoMixError(f"concept {text[:40]} does not exist; give a number from 0 to {self.num_concepts - 1}.")
        if self.atlas is not None:
            return self.atlas.search(text, limit)
        if text.isdecimal():
            return [ConceptHit(int(text), self.names([int(text)])[int(text)], "", 0.0)]
        raise CoCoMixError(
            f"without an atlas a concept is found by its number alone; make one with: cocomix atlas {self.run.path}."
        )

    def concept(self, text: str) -> int:
        """The concept that a number or words mean: the best hit; refused where there is none."""
        hits = self.find(text, 1) if text.strip() else []
        if not hits:
            raise CoCoMixError(f"no concept is found for {text[:40]!r}; write a number or other words.")
        return hits[0].id

    def names(self, concepts: Iterable[int]) -> dict[int, str]:
        """What concepts are called: the atlas' name, else the words they label in the run's data, else nothing."""
        if self.atlas is not None:
            return {concept: self.atlas.name(concept) for concept in concepts}
        return {concept: self._described.get(concept, "") for concept in concepts}

    @cached_property
    def _described(self) -> dict[int, str]:
        found = describe_run_concepts(self.run, range(self.num_concepts))
        return {concept: described.name for concept, described in found.items()}


def open_subject(
    run_folder: Path,
    *,
    atlas: Path | None = None,
    compare_with: Sequence[Path] = (),
    teacher: str | None = None,
    dictionary: str | None = None,
) -> Subject:
    """Load a run to explore.

    Refused where the run has no concepts, the atlas is of another run, the runs cannot be compared, or what was named
    cannot be read.

    Args:
        atlas: folder written by `cocomix atlas`; by default `RUN_atlas` beside the run, where it exists.
        compare_with: other runs for the comparison.
        teacher: Hub name or folder of the teacher; by default, as its `dictionary`, the one that the run's labels name.
    """
    run = Run.open(run_folder)
    model = concept_model(run.model())
    model.to(default_device())
    if atlas is None and default_atlas_folder(run.path).is_dir():
        atlas = default_atlas_folder(run.path)
    opened = _open_teacher(run, teacher, dictionary)
    runs = [run, *map(Run.open, compare_with)]
    plain = any(one.manifest.objective == "ntp" for one in runs)  # the baseline; without one, the run itself
    contexts = [model.config.max_position_embeddings]
    if isinstance(opened, ConceptTeacher):
        contexts.append(opened.decoder.model.config.get_text_config().max_position_embeddings)
    return Subject(
        run=run,
        model=model,
        tokenizer=run.tokenizer(),
        atlas=None if atlas is None else ConceptAtlas.open(atlas, run=run),
        teacher=opened,
        comparison=compare(runs, None if plain else run.manifest.name) if compare_with else None,
        tokens=min(MOST_TOKENS, *contexts),
    )


def _open_teacher(run: Run, teacher: str | None, dictionary: str | None) -> ConceptTeacher | str:
    """The teacher and dictionary that gave a run its concepts, or why they are not at hand where neither was named."""
    named = teacher is not None or dictionary is not None
    try:
        opened = open_run_teacher(run, open_run_data(run), teacher=teacher, dictionary=dictionary, download=named)
        if isinstance(opened, AlignedTeacher):
            raise CoCoMixError(
                "it has another tokenizer than the run, and texts side by side are of one; turn its latents with "
                "cocomix steer-eval."
            )
        return opened.teacher
    except CoCoMixError as error:
        if named:
            raise
        return f"The teacher is not at hand: {error}"
