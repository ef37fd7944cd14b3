"""Labels made inside training, batch by batch, by the frozen teacher (`labels: online`).

For runs that see every token once and whose labels would not be used again: nothing is stored, and the labels are those
that `cocomix label` would have written (the same call of the same teacher; only rounding depends on the batch). Every
process labels its own rows. The teacher is not part of the model: it is neither wrapped, nor trained, nor saved.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cocomix.artifacts import fingerprint_json
from cocomix.concepts import ConceptTeacher, TeacherLabeller, drop_without_target
from cocomix.data import Tokens
from cocomix.labelling import LabelSettings, open_labeller
from cocomix.runtime.console import progress
from cocomix.training.recipe import RunConfig

__all__ = ["OnlineLabels", "open_online_labels"]

_BATCH_TOKENS = 4096  # tokens per forward pass of the teacher, as in `cocomix label`

Batch = dict[str, Tensor]


class OnlineLabels:
    """A teacher that labels batches.

    On an accelerator, batches are labelled ahead of the student: a thread runs the teacher on a stream of its own while
    the student trains. On the CPU, both would share the cores, so that labels are made when they are asked for.

    Args:
        teacher: model, dictionary and layer, on the device that trains.
        settings: how labels are chosen.

    Attributes:
        ahead: whether batches are labelled ahead.
    """

    def __init__(self, teacher: ConceptTeacher, settings: LabelSettings) -> None:
        self.teacher = teacher
        self.settings = settings
        self.labeller = settings.labeller(teacher)
        self.ahead = teacher.decoder.device.type not in ("cpu", "mps")

    @property
    def num_concepts(self) -> int:
        """Number of concepts in the teacher's dictionary."""
        return self.teacher.n_concepts

    def flops_per_token(self, block_size: int) -> float:
        """What labelling costs."""
        return self.labeller.flops_per_token(block_size)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Labels of token rows: int64 [batch, seq, k] on the CPU from int64 [batch, seq]; −100 where there is none."""
        size = max(1, _BATCH_TOKENS // input_ids.shape[1])
        rows = torch.split(input_ids, size)
        masks = [None] * len(rows) if attention_mask is None else torch.split(attention_mask, size)
        with torch.inference_mode(False):  # the teacher differentiates
            ids = [
                self.labeller.label(part, mask, k=self.settings.k).ids.cpu()
                for part, mask in zip(rows, masks, strict=True)
            ]
        return torch.cat(ids)

    def blocks(self, blocks: Any) -> "LabelsInMemory":
        """Labels of all blocks of a data set, computed once and kept in memory, for its evaluations.

        Args:
            blocks: rows with `input_ids` [seq].
        """
        seq = len(blocks[0]["input_ids"])
        size = max(1, _BATCH_TOKENS // seq)
        labels = []
        with progress("label validation", len(blocks) * seq, "tokens") as advance:
            for start in range(0, len(blocks), size):
                rows = [blocks[index]["input_ids"] for index in range(start, min(start + size, len(blocks)))]
                labels.append(self.label(torch.stack(rows)).to(torch.int32))
                advance(len(rows) * seq)
        return LabelsInMemory(torch.cat(labels))

    def labelled(self, batches: Iterable[Batch], depth: int) -> Iterator[Batch]:
        """Batches with `concept_labels` [batch, seq, k].

        Args:
            batches: with `input_ids` and, where there is padding, `attention_mask`.
            depth: how many batches are labelled ahead, where they are: those of one optimizer step.
        """
        if not self.ahead:
            for batch in batches:
                yield self._add(batch)
            return
        stream = _SideStream(self.teacher.decoder.device)
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="labels") as thread:
            for batch in batches:
                waiting.append(thread.submit(stream.run, self._add, batch, stream.ready()))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def reference(self, data: Tokens) -> dict[str, str]:
        """Fingerprints for the run's manifest: of the labels, of the teacher and of its dictionary."""
        made = {
            name: value
            for name, value in self.labeller.fingerprint().items()
            if name not in ("configuration", "versions")
        }
        fingerprint = fingerprint_json({"tokens": data.manifest.fingerprint, "k": self.settings.k, **made})
        return {"fingerprint": fingerprint, "teacher": made["weights"], "dictionary": made["dictionary"]}

    def _add(self, batch: Mapping[str, Tensor]) -> Batch:
        labels = self.label(batch["input_ids"], batch.get("attention_mask"))
        if "labels" in batch:
            labels = drop_without_target(labels, batch["labels"])
        return {**batch, "concept_labels": labels}


class LabelsInMemory(Dataset[Batch]):
    """Labels by block: row i has `concept_labels`, int32 [seq, k]."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return {"concept_labels": self.labels[index]}


class _SideStream:
    """Runs functions beside what the accelerator's current stream does; on the CPU simply runs them."""

    def __init__(self, device: torch.device) -> None:
        self._stream = None if device.type == "cpu" else torch.Stream(device=device)

    def ready(self) -> torch.Event | None:
        """A mark that all work given to the current stream so far has been done."""
        return None if self._stream is None else torch.accelerator.current_stream().record_event()

    def run(self, function: Callable[[Batch], Batch], batch: Batch, ready: torch.Event | None) -> Batch:
        """Call `function(batch)` after `ready`; what it adds must be on the CPU."""
        if self._stream is None or ready is None:
            return function(batch)
        with self._stream:
            self._stream.wait_event(ready)
            return function(batch)


def open_online_labels(recipe: RunConfig, data: Tokens, device: torch.device) -> OnlineLabels:
    """Load and try a recipe's teacher and dictionary.

    Raises:
        CoCoMixError: as `open_labeller`.
    """
    assert recipe.teacher is not None  # the recipe was refused otherwise
    assert recipe.dictionary is not None
    settings = recipe.attribution or LabelSettings()
    labeller = open_labeller(data, settings.config(recipe.teacher, recipe.dictionary), device=device).labeller
    assert isinstance(labeller, TeacherLabeller)
    return OnlineLabels(labeller.teacher, settings)
