"""Objectives: named loss terms, each with its own count and weight. One file an objective."""

from cocomix.training.objectives.alm import ChunkLikelihood
from cocomix.training.objectives.cocomix import ConceptPrediction, default_objectives, recalled_labels
from cocomix.training.objectives.hidden import HiddenPrediction
from cocomix.training.objectives.kd import Distillation
from cocomix.training.objectives.ntp import NextToken
from cocomix.training.objectives.objective import (
    Auxiliary,
    Batch,
    LossTerm,
    Objective,
    Schedule,
    auxiliary,
    auxiliary_objective,
    objective_type,
    register_objective,
)
from cocomix.training.objectives.step_loss import add_heads, count_terms, drop_heads, in_force, loss_terms, step_loss
from cocomix.training.objectives.uld import SortedDistillation

__all__ = [
    "Auxiliary",
    "Batch",
    "ChunkLikelihood",
    "ConceptPrediction",
    "Distillation",
    "HiddenPrediction",
    "LossTerm",
    "NextToken",
    "Objective",
    "Schedule",
    "SortedDistillation",
    "add_heads",
    "auxiliary",
    "auxiliary_objective",
    "count_terms",
    "default_objectives",
    "drop_heads",
    "in_force",
    "loss_terms",
    "objective_type",
    "recalled_labels",
    "register_objective",
    "step_loss",
]
