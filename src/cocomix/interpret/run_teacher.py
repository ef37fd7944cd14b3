"""The teacher and dictionary that a run's concepts come from: found again from its recipe and labels, and as a reader.

A reader tells how much of each concept is in a text, and how fluent the text is. A teacher of another tokenizer reads
the text of the student's tokens, aligned by bytes as for its labels: a student's token has the concepts of the last
teacher's token that ends no later (`AlignedTexts`). How much of a concept is at a token is the labeller's to say
(`TeacherLabeller.present`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts import (
    UNREAD,
    AlignedTeacher,
    AttributionConfig,
    ConceptLabeller,
    DictionaryConfig,
    FittedLabeller,
    OnlineConfig,
    SparseCodes,
    TeacherConfig,
    TeacherLabeller,
    TeacherLabellerConfig,
    pad_right,
)
from cocomix.data import Tokens
from cocomix.evaluation import Run, run_labels
from cocomix.labelling import load_labeller
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.online import kept_labeller
from cocomix.training.recipe import load_recipe


def open_run_teacher(
    run: Run, data: Tokens, *, teacher: str | None = None, dictionary: str | None = None, download: bool = True
) -> TeacherLabeller | AlignedTeacher:
    """Load the teacher of a run's concepts, with its dictionary and as it labelled, on the best device.

    It is an `AlignedTeacher` where it has another tokenizer. What is not given is taken from the run's recipe, and else
    from its labels. Refused where teacher or dictionary cannot be found out or loaded, do not fit one another or
    the data, or the dictionary is not the one of the run's labels.

    Args:
        teacher: hub name, folder or GGUF file of the teacher.
        dictionary: folder of its dictionary.
        download: whether a teacher that is not on this machine is fetched; otherwise it is refused.
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
    assert isinstance(labeller, TeacherLabeller | AlignedTeacher)
    dictionary_used = _teacher_labeller(labeller).teacher.dictionary
    if store is not None and dictionary_used.fingerprint() != store.manifest.made_from["dictionary"]:
        raise CoCoMixError(
            f"the dictionary {dictionary_used.name} is not the one the labels in {store.path} were made with, so its "
            "concepts are not the run's; give that one with --dictionary."
        )
    return labeller


def _teacher_labeller(labeller: ConceptLabeller) -> TeacherLabeller:
    inner = labeller.inner if isinstance(labeller, AlignedTeacher) else labeller
    assert isinstance(inner, TeacherLabeller)
    return inner


class ReadText(NamedTuple):
    """A text as the teacher reads it."""

    tokens: list[int]  # the teacher's
    # of each new token of the text, the teacher's token that says its concepts; none where it read nothing
    places: NDArray[np.int64]
    new: int  # the first of `tokens` with something new in it


class TextReader:
    """Reads the texts of a student, and those of the teacher itself, with the labeller of `open_run_teacher`."""

    def __init__(self, labeller: ConceptLabeller) -> None:
        self.aligned = labeller.texts if isinstance(labeller, AlignedTeacher) else None
        inner = _teacher_labeller(labeller)
        if isinstance(inner, FittedLabeller) and not inner.tables():
            raise CoCoMixError(
                f"labels of kind {inner.kind} are read with what was learned for them, which is in the label folder; "
                "put it back to where it was."
            )
        self._labeller = inner
        self.teacher = inner.teacher

    @property
    def context(self) -> int:
        """Longest text that the teacher reads, in its tokens."""
        return int(self.teacher.decoder.model.config.get_text_config().max_position_embeddings)

    def read(self, tokens: Sequence[int], given: int) -> ReadText:
        """A text in the student's tokens, of which the first `given` are not new."""
        if self.aligned is None:
            return self.read_own(tokens, given)
        text = self.aligned.read(np.array(tokens, dtype=np.int64), substitute=True)
        places = text.positions()[given:]
        new = int(np.searchsorted(text.ends, text.student_ends[given - 1], side="right"))
        return ReadText(text.tokens, places[places >= UNREAD], max(1, new))

    def read_own(self, tokens: Sequence[int], given: int) -> ReadText:
        """A text in the teacher's tokens, of which the first `given` are not new."""
        return ReadText(list(tokens), np.arange(given, len(tokens)), given)

    def begin(self, tokens: Sequence[int]) -> list[int]:
        """A text in the student's tokens as the teacher is to continue it, in its own."""
        if self.aligned is None:
            return list(tokens)
        return self.aligned.read(np.array(tokens, dtype=np.int64)).tokens or [self.aligned.teacher_end]

    @torch.no_grad()
    def measure(self, texts: Sequence[ReadText], concepts: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What the teacher makes of the new part of texts, each no longer than its context: the loss in nats per
        teacher's token, NaN where there is nothing new that it can read [batch]; and of each text how much of each
        concept is at its new tokens [new, concepts].
        """
        self.check_length(max(len(text.tokens) for text in texts))
        decoder = self.teacher.decoder
        batch, mask = pad_right([torch.tensor(text.tokens, device=decoder.device) for text in texts])
        hidden: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            hidden.append(output)
            return output

        with decoder.replaced(keep):
            states, head = decoder.predictions(batch, mask, dtype=getattr(torch, self._labeller.dtype))
        codes = self._labeller.present(batch, self.teacher.dictionary.encode(hidden[0]))
        losses, found = [], []
        for row, (tokens, places, new) in enumerate(texts):
            at = torch.from_numpy(places).to(batch.device)
            there = codes.ids[row, at][..., None] == torch.tensor(concepts, device=batch.device)
            found.append((codes.values[row, at][..., None] * there).sum(1))
            before = states[row, new - 1 : len(tokens) - 1]
            logits = before if head is None else head(before.to(head.weight.dtype))
            losses.append(F.cross_entropy(logits.float(), batch[row, new : len(tokens)]))
        return torch.stack(losses), found

    def check_length(self, tokens: int) -> None:
        """Refuse a text of more tokens than the teacher's context."""
        if tokens > self.context:
            raise CoCoMixError(
                f"a text of {tokens} tokens of the teacher does not fit its context of {self.context}; lower "
                "--prompt-tokens or --new-tokens."
            )

    @torch.no_grad()
    def survey(self, blocks: Tensor) -> tuple[SparseCodes, SparseCodes]:
        """Activations in blocks of the student's tokens, and how much of them counts as present. [positions, width]"""
        decoder = self.teacher.decoder
        tokens = (blocks if self.aligned is None else self.aligned.blocks(blocks)).to(decoder.device)
        hidden = decoder.hidden_states(tokens, dtype=getattr(torch, self._labeller.dtype))
        codes = self.teacher.dictionary.encode(hidden)
        pairs = (codes, self._labeller.present(tokens, codes))
        raw, present = (SparseCodes(ids.flatten(0, 1), values.flatten(0, 1)) for ids, values in pairs)
        return raw, present
