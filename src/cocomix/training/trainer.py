"""`CoCoMixTrainer`: the Hugging Face Trainer with concept labels, every loss term logged and whole checkpoints.

What is added to `transformers.Trainer` is only what the method needs: the objective seam, divisors counted over the
whole optimizer step, an evaluation that reports the next-token loss alone, a stop on a loss that is not finite, and a
mark on complete checkpoints.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cocomix.errors import CoCoMixError
from cocomix.modeling import CoCoMixConfig
from cocomix.modeling.concept_head import IGNORE
from cocomix.output import explained_full_disk, read_json, write_json
from cocomix.training.arguments import tokens_after, tokens_per_step
from cocomix.training.objectives import OBJECTIVES, Divisors, Objective, ObjectiveOutput
from cocomix.training.online import OnlineLabels

__all__ = ["CoCoMixTrainer", "collate_blocks", "last_complete_checkpoint"]

_COMPLETE = "complete"
_COLUMNS: dict[str, torch.dtype | None] = {
    **dict.fromkeys(("input_ids", "labels", "attention_mask", "position_ids"), torch.int64),
    **dict.fromkeys(("concept_labels", "teacher_ids"), torch.int64),
    "teacher_log_probs": None,
}
_LOSSES = ("ntp_loss", "concept_loss", "hidden_loss", "kd_loss")


def collate_blocks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Stack dataset rows into a batch; `labels` are the `input_ids` unless the rows bring their own.

    Args:
        rows: each with `input_ids` [seq] and, optionally, `labels` and `position_ids` [seq], `concept_labels`
            [seq, k_attr] and `teacher_ids` [seq, K], integers of any kind, and `teacher_log_probs` [seq, K].

    Returns:
        int64 tensors [batch, …], but for `teacher_log_probs`, which stay as they are.
    """
    batch = {
        name: torch.stack([torch.as_tensor(row[name], dtype=_COLUMNS[name]) for row in rows])
        for name in rows[0]
        if name in _COLUMNS
    }
    batch.setdefault("labels", batch["input_ids"])
    return batch


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that was written to its end; torn ones are removed."""
    complete: list[tuple[int, Path]] = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (path / _COMPLETE).is_file():
            complete.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(complete)[1] if complete else None


class CoCoMixTrainer(Trainer):  # type: ignore[misc]
    """Trains CoCoMix models and plain decoders on packed blocks.

    Datasets yield `input_ids` and, for CoCoMix, `concept_labels` [seq, k_attr] with −100 for unused entries. The
    objective follows from the model (`CoCoMixConfig` → `cocomix`, otherwise `ntp`) unless one is given. Everything
    else is `transformers.Trainer`.

    Logged beside the Trainer's own numbers: `ntp_loss`, `concept_loss` and `kd_loss` in nats, `hidden_loss`,
    `concept_recall` (share of label concepts among the model's top-k), `tokens` seen, `seconds` of training (evaluation
    and saving left out) and `tokens_per_second`. Under gradient accumulation and several processes the losses are
    averages over the targets of the whole optimizer step.

    With `online_labels`, training batches get their `concept_labels` from a teacher as they come; the time it takes is
    part of `seconds`. Evaluation sets bring their own (see `OnlineLabels.blocks`).
    """

    def __init__(
        self, *args: Any, objective: Objective | None = None, online_labels: OnlineLabels | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("data_collator", collate_blocks)
        super().__init__(*args, **kwargs)
        if objective is None:
            objective = OBJECTIVES["cocomix" if isinstance(self.model.config, CoCoMixConfig) else "ntp"]
        self.objective = objective
        self.online_labels = online_labels
        self._labelled: tuple[Any, Iterator[dict[str, Tensor]]] | None = None
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True  # divided by the whole step's counts, see `_get_num_items_in_batch`
        self._concept_positions: Tensor | None = None
        self._meter = _Meter()
        self.clock = TrainingClock()

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(_COLUMNS)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step and their counts; labelled first, where labels are made online."""
        if self.online_labels is not None:
            if self._labelled is None or self._labelled[0] is not epoch_iterator:
                depth = self.args.gradient_accumulation_steps
                self._labelled = (epoch_iterator, self.online_labels.labelled(epoch_iterator, depth))
            epoch_iterator = self._labelled[1]
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Count targets and labelled positions over all micro-batches of a step, on all processes."""
        if not batch_samples:
            return None
        counts = torch.stack([_count_targets(batch) for batch in batch_samples]).sum(0).to(device)
        counts = _over_processes(counts, self.accelerator).clamp_min(1)
        self._concept_positions = counts[1]
        return counts[0]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss for one micro-batch; its terms are kept for the next log line."""
        concept_positions = None if num_items_in_batch is None else self._concept_positions
        output = self.objective(model, inputs, Divisors(num_items_in_batch, concept_positions))
        self._meter.add(output)
        # Gradients are averaged over processes, but the divisors are global: undo the average.
        loss = output.loss * self.accelerator.num_processes if num_items_in_batch is not None else output.loss
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, tokens and seconds to a log line; stop if a number is not finite."""
        if "loss" in logs:
            logs.update(self._meter.averages(self.state.global_step, self.accelerator))
            if self.accelerator.mixed_precision == "fp16" and not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]  # the loss scaler skipped this step and lowers its scale
        for name in ("grad_norm", "eval_loss", *_LOSSES, *(f"eval_{name}" for name in _LOSSES)):
            if not math.isfinite(logs.get(name, 0.0)):
                self._stop(f"{name} became {logs[name]}")
        seconds = self.clock.seconds
        logs["tokens"] = self.tokens_seen(self.state.global_step)
        logs["seconds"] = seconds
        if "loss" in logs:
            logs["tokens_per_second"] = self.clock.rate(logs["tokens"])
        super().log(logs, start_time)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, all processes together."""
        return tokens_per_step(self.args, len(self.train_dataset[0]["input_ids"]))

    def tokens_seen(self, steps: int) -> int:
        """Training tokens of so many optimizer steps; the last step of an epoch may hold fewer than the others."""
        return tokens_after(steps, self.args, len(self.train_dataset), len(self.train_dataset[0]["input_ids"]))

    def _stop(self, what: str) -> NoReturn:
        checkpoint = last_complete_checkpoint(Path(self.args.output_dir))
        kept = "no checkpoint was written before" if checkpoint is None else f"the last good checkpoint is {checkpoint}"
        raise CoCoMixError(
            f"{what} by step {self.state.global_step} and training stopped; {kept}; lower training.learning_rate or "
            "training.max_grad_norm and train to another --output."
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, with the clock running."""
        try:
            with self.clock.running(self.args.device):
                return super().train(*args, **kwargs)
        finally:
            self._labelled = None  # batches labelled ahead of the last step

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """`measure`, logged. `ignore_keys` is accepted for the base class's sake and not needed."""
        metrics = self.measure(eval_dataset, metric_key_prefix)
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, eval_dataset: Any = None, prefix: str = "eval") -> dict[str, float]:
        """Average losses over a dataset, by default the evaluation set.

        Runs in the training precision, so that arms that train alike are evaluated alike.

        Returns:
            `eval_loss`, the next-token loss alone, in nats per target token; with concept labels also
            `eval_concept_loss` in nats per labelled position, and `eval_concept_recall`; where a teacher takes part,
            `eval_kd_loss` and `eval_hidden_loss` per target token.
        """
        model = self.model_wrapped if self.is_in_train else self.model
        meter, targets = _Meter(), torch.zeros(2, dtype=torch.int64, device=self.args.device)
        with self.clock.paused(self.args.device), torch.inference_mode():
            model.eval()
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                # Divisors of one turn averages into sums, so that a last, smaller batch has its own weight.
                meter.add(self.objective(model, inputs, Divisors(1, 1)))
                targets += _count_targets(inputs)
            model.train()
            tokens, positions = _over_processes(targets, self.accelerator).clamp_min(1).tolist()
            sums = meter.averages(1, self.accelerator)
        metrics = {f"{prefix}_loss": sums["ntp_loss"] / tokens}
        metrics |= {f"{prefix}_{name}": sums[name] / tokens for name in ("kd_loss", "hidden_loss") if name in sums}
        if "concept_loss" in sums:
            metrics[f"{prefix}_concept_loss"] = sums["concept_loss"] / positions
            metrics[f"{prefix}_concept_recall"] = sums["concept_recall"]
        return metrics

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The base class's, in which every block counts once.

        The last, smaller batch is there even if `dataloader_drop_last` leaves it out of training, and what several
        processes are given to have equally many batches holds nothing to predict.
        """
        if self.accelerator.num_processes > 1:
            blocks = self.eval_dataset if eval_dataset is None else eval_dataset
            eval_dataset = _Padded(blocks, self.args.eval_batch_size * self.accelerator.num_processes)
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
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, then mark the checkpoint complete; weights that are not finite are never saved."""
        with self.clock.paused(self.args.device):
            if not bool(torch.stack([weight.detach().isfinite().all() for weight in model.parameters()]).all()):
                self._stop("the weights became infinite or not a number")
            meter = self._meter.state(self.accelerator)
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            with explained_full_disk(folder):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    write_json(folder / _COMPLETE, {"seconds": self.clock.seconds, "meter": meter})

    def resume_meters(self, checkpoint: Path) -> None:
        """Go on counting seconds and averaging losses from where a complete checkpoint was written."""
        mark = read_json(checkpoint / _COMPLETE)
        step = int(checkpoint.name.rpartition("-")[2])
        self.clock.elapsed = float(mark["seconds"])
        self.clock.last_mark = (self.tokens_seen(step), self.clock.elapsed)
        self._meter.restore(mark["meter"], self.accelerator)


class _Padded(Dataset[dict[str, Tensor]]):
    """Blocks followed by as many without a target as make the number a multiple of `multiple`."""

    def __init__(self, blocks: Any, multiple: int) -> None:
        self.blocks, self.multiple = blocks, multiple

    def __len__(self) -> int:
        return math.ceil(len(self.blocks) / self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = dict(self.blocks[min(index, len(self.blocks) - 1)])
        row.setdefault("labels", row["input_ids"])
        if index >= len(self.blocks):
            targets = row.keys() & {"labels", "concept_labels"}
            row |= {name: torch.full_like(row[name], IGNORE) for name in targets}
        return row


def _count_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """Target tokens and labelled positions of a batch. [2], int64"""
    tokens = batch["labels"][:, 1:].ne(IGNORE).sum()
    concepts = batch["concept_labels"].ne(IGNORE).any(-1).sum() if "concept_labels" in batch else tokens.new_zeros(())
    return torch.stack((tokens, concepts))


class _Meter:
    """Sums loss terms on the device between log lines, so that no step waits for the host."""

    def __init__(self) -> None:
        self.last_step = 0
        self._terms: dict[str, Tensor] = {}
        self._ratios: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, output: ObjectiveOutput) -> None:
        for name, value in {"loss": output.loss, **output.terms}.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self._terms[name] = self._terms[name] + value if name in self._terms else value
        for name, (part, whole) in output.ratios.items():
            before = self._ratios.get(name)
            self._ratios[name] = (part, whole) if before is None else (before[0] + part, before[1] + whole)

    def averages(self, step: int, accelerator: Any) -> dict[str, float]:
        """Per-step averages since the last call, summed over processes, and the ratios; then start anew."""
        steps = max(step - self.last_step, 1)
        sums = self.state(accelerator)
        values = {name: value / steps for name, value in sums["terms"].items()}
        values |= {name: part / whole if whole else 0.0 for name, (part, whole) in sums["ratios"].items()}
        self.last_step, self._terms, self._ratios = step, {}, {}
        return values

    def state(self, accelerator: Any) -> dict[str, Any]:
        """What was summed since the last log line, over all processes, as JSON."""
        return {
            "last_step": self.last_step,
            "terms": {name: float(_over_processes(value, accelerator)) for name, value in self._terms.items()},
            "ratios": {
                name: [float(_over_processes(value, accelerator)) for value in pair]
                for name, pair in self._ratios.items()
            },
        }

    def restore(self, state: Mapping[str, Any], accelerator: Any) -> None:
        """Go on from a `state`; the sums of all processes go to the first."""
        self.last_step = state["last_step"]
        if not accelerator.is_main_process:
            return
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64

        def tensor(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=accelerator.device)

        self._terms = {name: tensor(value) for name, value in state["terms"].items()}
        self._ratios = {name: (tensor(part), tensor(whole)) for name, (part, whole) in state["ratios"].items()}


def _over_processes(value: Tensor, accelerator: Any) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    reduced: Tensor = accelerator.reduce(value, reduction="sum")
    return reduced


class TrainingClock:
    """Seconds spent training; stands still during evaluation and saving."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.last_mark = (0.0, 0.0)
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.elapsed + (0.0 if self._started is None else time.perf_counter() - self._started)

    def rate(self, tokens: float) -> float:
        """Tokens per second since the last call."""
        seconds = self.seconds
        rate = (tokens - self.last_mark[0]) / max(seconds - self.last_mark[1], 1e-9)
        self.last_mark = (tokens, seconds)
        return rate

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the block's time."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self._stop(device)

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Do not count the block's time, if the clock runs at all."""
        was_running = self._started is not None
        if was_running:
            self._stop(device)
        try:
            yield
        finally:
            if was_running:
                self._started = time.perf_counter()

    def _stop(self, device: torch.device) -> None:
        if self._started is None:
            return
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        self.elapsed += time.perf_counter() - self._started
        self._started = None
