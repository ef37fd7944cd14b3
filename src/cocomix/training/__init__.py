"""Training: objectives, the Trainer, and one run from a recipe to a folder."""

from cocomix.training.dry_run import Plan, describe_plan, plan_run
from cocomix.training.run import dry_run, train
from cocomix.training.trainer import CoCoMixTrainer

__all__ = ["CoCoMixTrainer", "Plan", "describe_plan", "dry_run", "plan_run", "train"]
