"""Training: objectives, the Trainer, and one run from a recipe to a folder."""

from cocomix.training.dry_run import Plan, describe_plan, plan_run
from cocomix.training.manifest import RunManifest
from cocomix.training.opened_run import CurvePoint, Run
from cocomix.training.run import dry_run, train
from cocomix.training.trainer import CoCoMixTrainer

__all__ = [
    "CoCoMixTrainer",
    "CurvePoint",
    "Plan",
    "Run",
    "RunManifest",
    "describe_plan",
    "dry_run",
    "plan_run",
    "train",
]
