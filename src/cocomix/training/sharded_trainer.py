"""`ShardedTrainer`: a `CoCoMixTrainer` whose model, gradients and optimizer are spread over processes (FSDP2)."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cocomix.training.checkpoints import explained_checkpoint
from cocomix.training.launching import Sharding
from cocomix.training.meters import over_processes
from cocomix.training.sharded_checkpoints import load_optimizer, load_weights, save_optimizer, save_weights
from cocomix.training.sharding import give_back, shard_model, share, whole, whole_weights
from cocomix.training.trainer import CoCoMixTrainer

__all__ = ["ShardedTrainer"]


class ShardedTrainer(CoCoMixTrainer):
    """Trains as `CoCoMixTrainer` does, the model sharded in `fsdp_units`.

    Checkpoints hold every process's share (`cocomix.training.sharded_checkpoints`); any number of processes goes on
    from them. The model saved at the end is whole. Gradients are reduced after every micro-batch (our choice: whole
    gradients would have to be kept otherwise). A teacher is no part of the model and is not sharded.
    """

    # Weights gathered in inference mode could not be trained afterwards.
    _without_gradients = torch.no_grad

    def __init__(self, *args: Any, sharding: Sharding, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shard_model(self.model, self.args.device, sharding)
        self.is_distributed_loading_by_transformers = True  # so the Trainer neither wraps nor moves the model

    def measure(self, eval_dataset: Any = None, prefix: str = "eval") -> dict[str, float]:
        """As in the base class; weights gathered for it are given back."""
        metrics = super().measure(eval_dataset, prefix)
        give_back(self.model)
        return metrics

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _weights_are_finite(self) -> bool:
        weights = [share(weight.detach()) for weight in self.model.parameters()]
        bad = torch.stack([weight.isfinite().logical_not().sum() for weight in weights]).sum()
        return int(over_processes(bad, self.accelerator)) == 0

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, whole(grad_norm))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model: this process's share into a checkpoint, else all of it by the first process."""
        folder = str(self.args.output_dir) if output_dir is None else output_dir
        if self._saving:
            save_weights(Path(folder), self.model, self.args.should_save)
            return
        weights = whole_weights(self.model)
        if self.args.should_save:
            self._save(folder, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_optimizer(
            Path(output_dir),
            self.model,
            self.optimizer.optimizer,
            self.lr_scheduler.state_dict(),
            self.args.should_save,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with explained_checkpoint(Path(resume_from_checkpoint)):
            load_weights(Path(resume_from_checkpoint), self.model)

    def _load_best_model(self) -> None:
        load_weights(Path(self.state.best_model_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with explained_checkpoint(Path(checkpoint)):
            schedule = load_optimizer(Path(checkpoint), self.model, self.optimizer.optimizer)
            self.lr_scheduler.load_state_dict(schedule)
