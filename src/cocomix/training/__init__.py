"""Training: objectives, the Trainer, and one run from a recipe to a folder.

The names are imported when they are first used, so that a finished run is recognised without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocomix.training.manifest import RunManifest
    from cocomix.training.opened_run import CurvePoint, Run
    from cocomix.training.run import dry_run, train
    from cocomix.training.run_plan import Plan, describe_plan, plan_run
    from cocomix.training.trainer import CoCoMixTrainer

_MODULES = {
    "manifest": ("RunManifest",),
    "opened_run": ("CurvePoint", "Run"),
    "run": ("dry_run", "train"),
    "run_plan": ("Plan", "describe_plan", "plan_run"),
    "trainer": ("CoCoMixTrainer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
