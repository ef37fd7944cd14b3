"""Labels made inside training, batch by batch (`labels: {kind: …}` without a path).

For runs that see every token once and whose labels would not be used again: no label is stored, and they are those that
`cocomix label` would have written (the same call of the same labeller; only rounding depends on the batch). Every
process labels its own rows. A teacher is not part of the model: it is neither wrapped, nor trained, nor saved.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from cocomix.artifacts import fingerprint_json
from cocomix.concepts import (
    ActivationConfig,
    ConceptLabeller,
    DictionaryConfig,
    FittedLabeller,
    LabellerConfig,
    OnlineConfig,
    OnlineLabeller,
    TeacherConfig,
    determining,
    dictionary_layer,
    drop_without_target,
)
from cocomix.data import Tokens
from cocomix.labelling import fit_flops, open_labeller
from cocomix.model import CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from cocomix.runtime.console import progress
from cocomix.runtime.flops import product_flops
from cocomix.training.launching import refuse_under_fsdp

TABLES = "labels/tables.safetensors"
"""In the folder of a run: what a labeller with a first pass learned."""
STATE = "student_labels.safetensors"
"""In a checkpoint: copy and dictionary of `StudentLabels`."""
TEACHER, DICTIONARY = "labels/teacher", "labels/dictionary"
"""In the folder of a run: likewise, when it is finished."""
_BATCH_TOKENS = 4096  # tokens labelled at once, as in `cocomix label`

Batch = dict[str, Tensor]


class OnlineLabels:
    """A labeller at work on batches, on the device that trains.

    On an accelerator, batches are labelled ahead of the student: a thread runs the labeller on a stream of its own
    while the student trains. On the CPU, both would share the cores, so that labels are made when they are asked for.
    """

    of_student: ClassVar[bool] = False  # whether labels change with it; else those of a batch can be made once for all

    def __init__(self, labeller: ConceptLabeller, config: LabellerConfig, device: torch.device) -> None:
        self.labeller = labeller
        self.config = config
        self.device = device
        self.ahead = device.type not in ("cpu", "mps")

    @property
    def num_concepts(self) -> int:
        """Number of concepts that labels name."""
        return self.labeller.num_concepts

    def flops_per_token(self, block_size: int, student: PreTrainedConfig) -> float:
        """What labelling costs, for a student of this configuration."""
        return self.labeller.flops_per_token(block_size)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Labels of token rows: int64 [batch, seq, k] on the CPU from int64 [batch, seq]; −100 where there is none."""
        ids = []
        with torch.inference_mode(False):  # a teacher differentiates
            for rows in rows_at_once(input_ids):
                mask = None if attention_mask is None else attention_mask[rows]
                ids.append(self.labeller.label(input_ids[rows], mask, k=self.config.k).ids.cpu())
        return torch.cat(ids)

    def blocks(self, blocks: Any) -> list[Batch]:
        """Labels of a data set's blocks, `concept_labels` [seq, k] int32 of each, kept for its evaluations."""
        ids = torch.stack([block["input_ids"] for block in blocks])
        labels = []
        with progress("label validation", ids.numel(), "tokens") as advance:
            for rows in rows_at_once(ids):
                labels.append(self.label(ids[rows]).to(torch.int32))
                advance(ids[rows].numel())
        return [{"concept_labels": row} for row in torch.cat(labels)]

    def labelled(self, batches: Iterable[Batch], depth: int, count: int | None = None) -> Iterator[Batch]:
        """Batches with `concept_labels` [batch, seq, k], then those whose labels nobody asks for as they come.

        Args:
            depth: how many batches are labelled ahead, where they are: those of one optimizer step.
            count: how many batches get labels; all by default.
        """
        batches = iter(batches)
        yield from self._labelled(islice(batches, count), depth)
        yield from batches

    def _labelled(self, batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
        if not self.ahead:
            yield from map(self._add, batches)
            return
        stream = None if self.device.type == "cpu" else torch.Stream(device=self.device)

        def label(batch: Batch, made: torch.Event | None) -> Batch:
            """Labels are on the CPU, so that nothing has to wait for the side stream."""
            with stream or nullcontext():
                if stream is not None and made is not None:
                    stream.wait_event(made)
                return self._add(batch)

        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="labels") as thread:
            for batch in batches:
                made = None if stream is None else torch.accelerator.current_stream().record_event()
                waiting.append(thread.submit(label, batch, made))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def reference(self, data: Tokens) -> dict[str, Any]:
        """For the run's manifest: fingerprint of the labels, settings, the labeller's fingerprint, cost of its fit."""
        made = determining(self.labeller.fingerprint())
        fingerprint = fingerprint_json({"tokens": data.manifest.fingerprint, "k": self.config.k, **made})
        settings, first_pass = self.config.model_dump(mode="json"), fit_flops(data, self.labeller)
        return {"fingerprint": fingerprint, "labels": settings, "labeller": made, "fit_flops": first_pass}

    def save_tables(self, folder: Path) -> None:
        """Keep what the labeller learned from the data, so that a run that goes on labels as it began."""
        tables = self.labeller.tables() if isinstance(self.labeller, FittedLabeller) else {}
        if tables:
            (folder / TABLES).parent.mkdir(exist_ok=True)
            save_file(tables, folder / TABLES)

    def begin(self, trainer: Any) -> None:
        """See the Trainer before training."""

    def evaluated(self, batch: Batch) -> Batch:
        """A batch of an evaluation, which has its labels from `blocks`."""
        return batch

    def numbers(self) -> dict[str, float]:
        """What is logged beside the losses, since the last call."""
        return {}

    def save_state(self, checkpoint: Path) -> None:
        """Write what changes while training into a checkpoint's folder."""

    def restore_state(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""

    def finish(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep what was learned while training in the run's folder."""

    def _add(self, batch: Mapping[str, Tensor]) -> Batch:
        labels = self.label(batch["input_ids"], batch.get("attention_mask"))
        if "labels" in batch:
            labels = drop_without_target(labels, batch["labels"])
        return {**batch, "concept_labels": labels}


class StudentLabels(OnlineLabels, TrainerCallback):  # type: ignore[misc]
    """Labels of kind `online`: made by a copy of the student, which follows it step by step.

    Every micro-batch is labelled and learned from before the student sees it, and after every optimizer step the copy
    and its dictionary move; of several processes, all make the same move. So nothing is labelled ahead. Both are part
    of a checkpoint, so that a run that goes on labels as it would have. When training ends they are kept in the run:

        RUN/labels/teacher        the copy of the student, as `from_pretrained` loads it
        RUN/labels/dictionary     the dictionary, as SAELens' `load_from_disk` does

    With them `cocomix label --kind activation` makes the labels of any text, to measure the run by.
    """

    of_student: ClassVar[bool] = True
    labeller: OnlineLabeller

    def __init__(self, config: OnlineConfig, data: Tokens, device: torch.device) -> None:
        super().__init__(OnlineLabeller(config, data.manifest.bos_token_id), config, device)
        self.ahead = False

    def flops_per_token(self, block_size: int, student: PreTrainedConfig) -> float:
        """Of the copy up to the block that is read, and of labelling and learning by the dictionary."""
        with torch.device("meta"):
            model = build_model(student)
        layer = self._layer_of(model)
        flops = self.labeller.flops_of(model, layer, block_size)
        if isinstance(model, CoCoMixForCausalLM) and layer >= model.config.insert_layer:
            assert isinstance(model.predictor, nn.Module)  # else there are no labels to predict
            flops += product_flops(model.predictor) + model.config.form.flops_per_token(model.config)
        return flops

    def begin(self, trainer: Any) -> None:
        if trainer.is_fsdp_enabled:
            refuse_under_fsdp((), self.config)
        self.labeller.follow(trainer.model, self._layer_of(trainer.model))
        self._reduce = partial(trainer.accelerator.reduce, reduction="sum")
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move copy and dictionary, before anything is logged, evaluated or saved."""
        self.labeller.step(self._reduce)

    def evaluated(self, batch: Batch) -> Batch:
        """A batch of an evaluation with the labels of now, from which nothing is learned."""
        return super()._add(batch)

    def numbers(self) -> dict[str, float]:
        return self.labeller.learning.numbers()

    def save_state(self, checkpoint: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in self.labeller.state().items()}
        save_file(state, checkpoint / STATE)

    def restore_state(self, checkpoint: Path) -> None:
        self.labeller.restore(load_file(checkpoint / STATE, device=str(self.device)))

    def finish(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.labeller.teacher.decoder.model.save_pretrained(folder / TEACHER)
        tokenizer.save_pretrained(folder / TEACHER)
        (folder / DICTIONARY).mkdir(parents=True, exist_ok=True)
        self.labeller.dictionary.save(folder / DICTIONARY)

    def _add(self, batch: Mapping[str, Tensor]) -> Batch:
        ids, mask, targets = batch["input_ids"], batch.get("attention_mask"), batch.get("labels")
        found = []
        for rows in rows_at_once(ids):
            some = [None if part is None else part[rows] for part in (mask, targets)]
            found.append(self.labeller.learn(ids[rows], *some, k=self.config.k).cpu())
        return {**batch, "concept_labels": torch.cat(found)}

    def _layer_of(self, student: PreTrainedModel) -> int:
        config = student.config
        interleaved = isinstance(student, CoCoMixForCausalLM) and config.positions_per_token > 1
        return self.labeller.layer_of(student, config.insert_layer if interleaved else None)


def kept_labeller(folder: Path, config: OnlineConfig) -> ActivationConfig:
    """How labels of other texts are made with what a finished run in a folder has kept."""
    dictionary = DictionaryConfig(path=str(folder / DICTIONARY))
    teacher = TeacherConfig(model=str(folder / TEACHER), layer=dictionary_layer(dictionary))
    return ActivationConfig(k=config.k, dtype=config.dtype, teacher=teacher, dictionary=dictionary)


def rows_at_once(input_ids: Tensor) -> list[slice]:
    """Which rows of [batch, seq] are labelled at once: about so many tokens as in `cocomix label`."""
    size = max(1, _BATCH_TOKENS // input_ids.shape[1])
    return [slice(start, start + size) for start in range(0, len(input_ids), size)]


def open_online_labels(
    config: LabellerConfig, data: Tokens, device: torch.device, folder: Path, *, bf16: bool = False
) -> OnlineLabels:
    """Load a recipe's labeller and try it, or begin one of kind `online`; raises as `open_labeller`.

    Args:
        folder: of the unfinished run, if there is one: what the labeller learned before is read from there.
        bf16: whether the run computes in bfloat16, as a teacher then does whose `dtype` is not given.
    """
    if bf16 and "dtype" in type(config).model_fields and "dtype" not in config.model_fields_set:
        config = config.model_copy(update={"dtype": "bfloat16"})
    if isinstance(config, OnlineConfig):
        return StudentLabels(config, data, device)
    tables = load_file(folder / TABLES) if (folder / TABLES).is_file() else None
    labeller, _ = open_labeller(data, config, device=device, tables=tables)
    return OnlineLabels(labeller, config, device)
