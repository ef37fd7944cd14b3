"""`CoCoMixTrainer`: the Hugging Face Trainer with concept labels, every loss term logged and whole checkpoints."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from cocomix.artifacts import explained_full_disk
from cocomix.model.fused_head import causal_loss
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.arguments import refuse_unheeded, tokens_after, tokens_per_step, total_steps
from cocomix.training.checkpoints import (
    WRITING,
    Checkpoint,
    CheckpointManifest,
    checkpoint_step,
    explained_checkpoint,
    last_complete_checkpoint,
    publish,
    weights_are_finite,
)
from cocomix.training.launching import gather_as_kept
from cocomix.training.loading import (
    COLUMNS,
    PaddedBlocks,
    collate_blocks,
    columns_read,
    ordered_loader,
    told_by_workers,
)
from cocomix.training.meters import LossMeter, TrainingClock
from cocomix.training.objectives import Objective, default_objectives
from cocomix.training.objectives.step_loss import add_heads, count_terms, in_force, loss_terms, step_loss
from cocomix.training.online import OnlineLabels
from cocomix.training.optimizers import MUON, muon
from cocomix.training.order import BlockOrder, ShuffledOrder, StepBatches

NonFinite = Literal["stop", "skip"]
"""What to do about gradients that are infinite or not a number."""
_SKIPS_IN_A_ROW = 10  # our choice: a rare bad batch is over sooner, and training that has diverged does not come back


class CoCoMixTrainer(Trainer):  # type: ignore[misc]
    """Trains CoCoMix models and plain decoders on packed blocks.

    Datasets yield `input_ids` and, for CoCoMix, `concept_labels` [seq, k_attr] with −100 for unused entries, and what
    else the `objectives` need. The loss is the sum of their terms, each its weight times its sum ÷ its count, where sum
    and count are of the whole optimizer step under gradient accumulation and several processes. By default they follow
    from the model's configuration: next tokens, and with λ > 0 concepts. Logged beside the Trainer's own numbers: every
    term, and its weight if that changes; `concept_recall` (share of label concepts among the model's top-k), `tokens`
    seen (of a stream: as if every step were whole), `seconds` of training (evaluation and saving left out) and
    `tokens_per_second`. Everything else is `transformers.Trainer`.

    A loss or gradient that is not finite stops training at the next log line. With `non_finite="skip"` a step whose
    gradients are not finite changes nothing and is left out of the averages; ten in a row stop training. It waits for
    the device once per step. Under fp16 the loss scaler does the same by itself.

    With `online_labels`, training batches get their `concept_labels` from a teacher as they come; the time it takes is
    part of `seconds`. Evaluation sets bring their own (see `OnlineLabels.blocks`).

    Training blocks come in `order`, by default shuffled by `data_seed` or `seed`: the same for any number of loader
    workers, and for any number of processes of one global batch size. Iterable sets and other values of
    `train_sampling_strategy` than `random` are left to the base class. `reached` is told the epoch and place of every
    batch when the loader begins to read it.
    """

    def __init__(
        self,
        *args: Any,
        objectives: Sequence[Objective] | None = None,
        online_labels: OnlineLabels | None = None,
        non_finite: NonFinite = "stop",
        order: BlockOrder | None = None,
        reached: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        self._own = frozenset[str]().union(*(one.needs for one in objectives or ())) - COLUMNS.keys()
        kwargs.setdefault("data_collator", partial(collate_blocks, own=self._own))
        refuse_unheeded(signature(Trainer.__init__).bind(self, *args, **kwargs).arguments)
        super().__init__(*args, **kwargs)
        self.model.loss_function = causal_loss  # of plain decoders; ours have their own
        if self.args.optim == MUON:
            self.optimizer_cls_and_kwargs = muon(self.args)
        self.objectives = default_objectives(self.model.config) if objectives is None else tuple(objectives)
        if self.is_fsdp_enabled:
            gather_as_kept(self.accelerator.state.fsdp_plugin, self.objectives)
        if online_labels is not None:
            online_labels.begin(self)  # before the objectives' heads are part of the model
        self.heads = add_heads(self.objectives, self.model, self.args.device)
        if (settings := self.accelerator.ddp_handler) is not None:
            settings.gradient_as_bucket_view = True  # else gradients are there twice, in DDP's buckets and beside them
            if any(one.weight.steps(self.total_steps) < self.total_steps for one in self.objectives):
                settings.find_unused_parameters = True  # a head, or a predictor that is not mixed in
        self.online_labels, self.order, self.reached = online_labels, order, reached
        self._labelled: tuple[Any, Iterator[dict[str, Tensor]]] | None = None
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True  # divided by the whole step's counts, see `_get_num_items_in_batch`
        self._counts: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}  # of the last step, as far as they change during the run
        self._meter, self.clock, self._saving = LossMeter(), TrainingClock(), False
        self.skips_non_finite = non_finite == "skip" and self.accelerator.mixed_precision != "fp16"
        self.skipped_steps = self._skipped_in_a_row = 0

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """Autocast, also for a model that accelerate has not prepared (before training) or not wrapped in it (FSDP)."""
        return self.accelerator.autocast()

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """The base class's without vectors, whatever they are called: the pause vector is one."""
        return [name for name in super().get_decay_parameter_names(model) if model.get_parameter(name).dim() > 1]

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*COLUMNS, *self._own]

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the run, over which weights are scheduled."""
        if self.train_dataset is None or self.args.max_steps > 0:  # a Trainer that only evaluates has no training set
            return max(int(self.args.max_steps), 1)
        return total_steps(self.args, len(self.train_dataset))

    def read_until(self, column: str) -> int:
        """The step, counted from 0, from which no objective reads a column such as `concept_labels` any more."""
        read = (one.weight for one in self.objectives if column in one.needs)
        return max((weight.steps(self.total_steps) for weight in read), default=0)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step and their counts; labelled first, where labels are made online."""
        self._meter.begin_step()
        if self.online_labels is not None:
            if self._labelled is None or self._labelled[0] is not epoch_iterator:
                depth = self.args.gradient_accumulation_steps
                steps = max(0, self.read_until("concept_labels") - self.state.global_step)  # of whole epochs, or fewer
                self._labelled = (epoch_iterator, self.online_labels.labelled(epoch_iterator, depth, steps * depth))
            epoch_iterator = self._labelled[1]
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Count what the terms sum over in all micro-batches of a step, on all processes; returns the first term's."""
        objectives = in_force(self.objectives, self.state.global_step, self.total_steps)
        counts = count_terms(objectives, batch_samples, device)
        if not counts:
            return None
        summed: Tensor = self.accelerator.reduce(torch.stack(list(counts.values())), "sum").clamp_min(1)
        self._counts = dict(zip(counts, summed, strict=True))
        return summed[0]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Σ weight · sum ÷ count over the terms of one micro-batch; they are kept for the next log line."""
        progress = (self.state.global_step, self.total_steps)
        objectives = in_force(self.objectives, *progress)
        counts = None if num_items_in_batch is None else self._counts
        terms, output = loss_terms(objectives, model, inputs, self.heads, progress, counts)
        loss, means, self._weights = step_loss(terms, counts, *progress)
        measured = {name: (term.sum, term.count) for name, term in terms.items() if term.weight is None}
        self._meter.add({"loss": loss, **means}, measured)
        if counts is not None:  # gradients are averaged over processes, but the counts are global: undo the average
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The base class's; gradients that are not finite are thrown away here, where asked to."""
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not self.skips_non_finite or math.isfinite(norm):
            self._skipped_in_a_row = 0
            return norm
        model.zero_grad(set_to_none=True)  # an optimizer leaves parameters without a gradient as they are
        self._meter.forget_step()
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == _SKIPS_IN_A_ROW:
            self._stop(f"the gradients of {_SKIPS_IN_A_ROW} steps in a row were infinite or not a number")
        return None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, tokens and seconds to a log line; stop if a number is not finite."""
        if "loss" in logs:
            if self.skips_non_finite and not math.isfinite(logs["loss"]):
                del logs["loss"]  # it still counts skipped steps; ours, if there was any other step, comes next
            logs |= self._meter.averages(self.accelerator) | self._weights
            logs |= {} if self.online_labels is None else self.online_labels.numbers()
            if self.accelerator.mixed_precision == "fp16" and not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]  # the loss scaler skipped this step and lowers its scale
        for name, value in logs.items():
            if name != "train_loss" and not math.isfinite(value):  # that is the summary's, over skipped steps too
                self._stop(f"{name} became {value}")
        logs |= {"tokens": self.tokens_seen(self.state.global_step), "seconds": self.clock.seconds}
        if "loss" in logs:
            logs["tokens_per_second"] = self.clock.rate(logs["tokens"])
        super().log(logs, start_time)

    @cached_property
    def block_size(self) -> int:
        """Tokens of a training block."""
        return len(next(iter(self.train_dataset))["input_ids"])

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, all processes together."""
        return tokens_per_step(self.args, self.block_size)

    def tokens_seen(self, steps: int) -> int:
        """Training tokens of so many optimizer steps; the last step of an epoch may hold fewer than the others."""
        blocks = len(self.train_dataset) if has_length(self.train_dataset) else None
        return tokens_after(steps, self.args, blocks, self.block_size) if steps else 0  # without a training set

    def _stop(self, what: str) -> NoReturn:
        checkpoint = last_complete_checkpoint(Path(self.args.output_dir))
        kept = "no checkpoint was written before" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        raise CoCoMixError(
            f"{what} by step {self.state.global_step} and training stopped; {kept}; lower training.learning_rate or "
            "training.max_grad_norm and train to another --output."
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, with the clock running.

        Args:
            resume_from_checkpoint: a checkpoint that this class wrote; `True` for the last whole one of `output_dir`.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_complete_checkpoint(Path(self.args.output_dir)) or "")
            if not resume_from_checkpoint:
                raise CoCoMixError(
                    f"resume_from_checkpoint=True, but {self.args.output_dir} holds no whole checkpoint; leave it out."
                )
        if resume_from_checkpoint:
            checkpoint = Path(resume_from_checkpoint)
            self._resume_meters(checkpoint)
            if self.online_labels is not None:
                with explained_checkpoint(checkpoint):
                    self.online_labels.restore_state(checkpoint)
        try:
            with self.clock.running(self.args.device), told_by_workers():
                return super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            self._labelled = None  # batches labelled ahead of the last step

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """`measure`, logged; of a mapping of data sets, each by its name. `ignore_keys` is not needed."""
        blocks = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(blocks, dict):
            parts = [self.evaluate(rows, None, f"{metric_key_prefix}_{name}") for name, rows in blocks.items()]
            return {name: value for part in parts for name, value in part.items()}
        metrics = self.measure(eval_dataset, metric_key_prefix)
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, eval_dataset: Any = None, prefix: str = "eval") -> dict[str, float]:
        """Average losses over a dataset, by default the evaluation set, in the training precision.

        Returns:
            `eval_loss`, of next tokens alone, in nats, and the other terms still trained whose columns the set has.
        """
        model = self.model_wrapped if self.is_in_train else self.model
        if self.is_fsdp_enabled and not isinstance(model, FSDPModule):
            raise CoCoMixError("the model is not sharded before training; evaluate it then, or without FSDP.")
        meter, progress = LossMeter(), (max(self.state.global_step - 1, 0), self.total_steps)
        objectives = in_force((one for one in self.objectives if not one.alone), *progress)
        with self.clock.paused(self.args.device), torch.no_grad(), self.compute_loss_context_manager():
            model.eval()
            for batch in self.get_eval_dataloader(eval_dataset):
                batch = batch if self.online_labels is None else self.online_labels.evaluated(batch)
                inputs = self._prepare_inputs(batch)
                measured = [one for one in objectives if one.needs <= inputs.keys()]
                terms, _ = loss_terms(measured, model, inputs, self.heads, progress)
                meter.add({}, {name: (term.sum, term.count) for name, term in terms.items()})
            model.train()
            found = meter.averages(self.accelerator)
        return {f"{prefix}_{name.removeprefix('ntp_')}": value for name, value in found.items()}

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it would hold [blocks, seq, vocabulary]."""
        raise CoCoMixError("predict() would hold the logits of a whole data set; call evaluate(), or the model itself.")

    def get_train_dataloader(self) -> Any:
        """Batches in the run's order."""
        blocks, arguments = self.train_dataset, self.args
        if isinstance(blocks, IterableDataset) or (
            self.order is None and arguments.train_sampling_strategy != "random"
        ):
            return super().get_train_dataloader()
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        order = self.order or ShuffledOrder(len(blocks), seed)
        collate = self._get_collator_with_removed_columns(self.data_collator, description="Training")
        needs = columns_read(blocks, self.objectives, arguments, self.total_steps)
        return ordered_loader(blocks, order, collate, arguments, needs, self.reached)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The base class's, in which every block counts once.

        The last, smaller batch is there even if `dataloader_drop_last` leaves it out of training, and what several
        processes are given to have equally many batches holds nothing to predict.
        """
        if self.accelerator.num_processes > 1:
            blocks = self.eval_dataset if eval_dataset is None else eval_dataset
            eval_dataset = PaddedBlocks(blocks, self.args.eval_batch_size * self.accelerator.num_processes)
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless the checkpoint resumed from is the last step's: the base class would go one step too far."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        batches, resumed = kwargs["train_dataloader"].batch_sampler, kwargs["epoch"] == kwargs["epochs_trained"]
        if isinstance(batches, StepBatches) and resumed and not self.args.ignore_data_skip:
            batches.pass_over(kwargs["steps_trained_in_current_epoch"])
        super()._run_epoch(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The base class's; of gathered weights, a tied one goes in once."""
        if state_dict is not None:
            tied = self.model.all_tied_weights_keys
            state_dict = {name: value for name, value in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with explained_checkpoint(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explained_checkpoint(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explained_checkpoint(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints are; while one is being written, the folder it is written in."""
        return str(Path(self.args.output_dir) / WRITING) if self._saving else str(self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, seal and rename it, then drop old ones; weights that are not finite are refused."""
        with self.clock.paused(self.args.device), explained_full_disk(Path(self.args.output_dir)):
            if not weights_are_finite(self.model, self.accelerator):
                self._stop("the weights became infinite or not a number")
            state = CheckpointManifest(
                seconds=self.clock.seconds,
                meter=self._meter.state(self.accelerator),
                skipped=(self.skipped_steps, self._skipped_in_a_row),
                tokens_per_step=self.tokens_per_step,
            )
            folder = Path(self.args.output_dir)
            if self.args.should_save:
                shutil.rmtree(folder / WRITING, ignore_errors=True)  # of a save that failed and was caught
            self.accelerator.wait_for_everyone()
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            if self.args.should_save and self.online_labels is not None:
                self.online_labels.save_state(folder / WRITING / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(folder, state, self.state, self.args.save_total_limit)

    def _resume_meters(self, checkpoint: Path) -> None:
        """Go on counting seconds, averaging losses and numbering skipped steps from a whole checkpoint."""
        state, ours = Checkpoint.open(checkpoint).manifest, self.tokens_per_step
        if state.tokens_per_step != ours:  # as they are with another number of processes
            raise CoCoMixError(
                f"{checkpoint} was written with {state.tokens_per_step:,} tokens per step and this launch has "
                f"{ours:,}; set batch_tokens in the recipe to the former, or training.gradient_accumulation_steps so "
                "that they agree."
            )
        self.clock.elapsed = state.seconds
        self.clock.last_mark = (self.tokens_seen(checkpoint_step(checkpoint)), self.clock.elapsed)
        self.skipped_steps, self._skipped_in_a_row = state.skipped
        self._meter.restore(state.meter, self.accelerator)
