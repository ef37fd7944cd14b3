"""Training: objectives, the Trainer, and one run from a recipe to a folder.

The names are imported when they are first used, so that a finished run is recognised without PyTorch.
"""

from typing import TYPE_CHECKING

from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.training.opened_run import CurvePoint, Run, RunManifest
    from cocomix.training.optimizers import muon
    from cocomix.training.recipe_cost import describe_plan, estimate
    from cocomix.training.run import train
    from cocomix.training.student import Plan, plan_run
    from cocomix.training.trainer import CoCoMixTrainer

__all__ = [
    "CoCoMixTrainer",
    "CurvePoint",
    "Plan",
    "Run",
    "RunManifest",
    "describe_plan",
    "estimate",
    "muon",
    "plan_run",
    "train",
]

__getattr__ = lazily(__name__)
