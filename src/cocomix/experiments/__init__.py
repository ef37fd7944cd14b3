"""Sweeps: arms × seeds from one plan, with what they share made once; resumable, one at a time or several."""

from typing import TYPE_CHECKING

from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.experiments.runner import SweepResult, run_sweep
    from cocomix.experiments.sweep_plan import SweepPlan, load_plan
    from cocomix.experiments.way import next_step

__all__ = ["SweepPlan", "SweepResult", "load_plan", "next_step", "run_sweep"]

__getattr__ = lazily(__name__)
