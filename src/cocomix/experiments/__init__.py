"""Sweeps: arms × seeds from one plan, with what they share made once; resumable, one at a time or several."""

from cocomix.experiments.plan import SweepPlan, load_plan
from cocomix.experiments.runner import SweepResult, run_sweep

__all__ = ["SweepPlan", "SweepResult", "load_plan", "run_sweep"]
