"""Labels of kind `online` inside training: made by a copy of the student, which follows it step by step.

Every micro-batch is labelled and learned from before the student sees it, and after every optimizer step the copy and
its dictionary move; of several processes, all make the same move. Both are part of a checkpoint, so that a run that
goes on labels as it would have. When training ends they are kept in the run:

    RUN/labels/teacher        the copy of the student, as `from_pretrained` loads it
    RUN/labels/dictionary     the dictionary, as SAELens' `load_from_disk` does

With them `cocomix label --kind activation` makes the labels of any text, to measure the run by.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from cocomix.concepts import (
    ActivationConfig,
    DictionaryConfig,
    OnlineConfig,
    OnlineLabeller,
    TeacherConfig,
    dictionary_layer,
)
from cocomix.data import Tokens
from cocomix.model import CoCoMixForCausalLM
from cocomix.model.accounting import build_model
from cocomix.runtime.flops import product_flops
from cocomix.training.launching import refuse_under_fsdp
from cocomix.training.meters import over_processes
from cocomix.training.online import Batch, OnlineLabels, rows_at_once

STATE = "student_labels.safetensors"
"""In a checkpoint."""
TEACHER, DICTIONARY = "labels/teacher", "labels/dictionary"
"""In the folder of a run."""


def kept_labeller(folder: Path, config: OnlineConfig) -> ActivationConfig:
    """How labels of other texts are made with what a finished run in a folder has kept."""
    dictionary = DictionaryConfig(path=str(folder / DICTIONARY))
    teacher = TeacherConfig(model=str(folder / TEACHER), layer=dictionary_layer(dictionary))
    return ActivationConfig(k=config.k, dtype=config.dtype, teacher=teacher, dictionary=dictionary)


class StudentLabels(OnlineLabels):
    """An `OnlineLabeller` at work on batches; never ahead of the student, whose last step decides the next labels."""

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
        trainer.add_callback(_AfterStep(self.labeller, trainer.accelerator))

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


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Moves copy and dictionary after every optimizer step, before anything is logged, evaluated or saved."""

    def __init__(self, labeller: OnlineLabeller, accelerator: Any) -> None:
        self.labeller, self.accelerator = labeller, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.labeller.step(lambda value: over_processes(value, self.accelerator))
