"""Reading the concepts a model predicts, and steering what it says with them."""

from cocomix.interpret.atlas_build import build_atlas
from cocomix.interpret.atlas_cards import (
    AtlasManifest,
    AtlasSettings,
    ConceptCard,
    ConceptHit,
    Context,
    Histogram,
    PropertyProbe,
    TokenChanges,
    WordLifts,
)
from cocomix.interpret.atlas_pass import Reading, read_held_out
from cocomix.interpret.concept_atlas import ConceptAtlas, Ranking, default_atlas_folder
from cocomix.interpret.effects import EditEffect, Effect, edit_effects, measure_effects, steering_candidates
from cocomix.interpret.inspection import (
    ConceptDescription,
    NextToken,
    PredictedConcept,
    TokenConcepts,
    concept_model,
    describe_run_concepts,
    encode,
    inspect_text,
    visible,
)
from cocomix.interpret.naming import NameEndpoint
from cocomix.interpret.run_teacher import open_run_teacher
from cocomix.interpret.steer_arms import SteerEvalSettings
from cocomix.interpret.steer_report import SteerReport, evaluate_run_steering
from cocomix.interpret.steering import FACTOR_LIMIT, Sampling, generate, parse_steer, steering, teacher_steering

__all__ = [
    "FACTOR_LIMIT",
    "AtlasManifest",
    "AtlasSettings",
    "ConceptAtlas",
    "ConceptCard",
    "ConceptDescription",
    "ConceptHit",
    "Context",
    "EditEffect",
    "Effect",
    "Histogram",
    "NameEndpoint",
    "NextToken",
    "PredictedConcept",
    "PropertyProbe",
    "Ranking",
    "Reading",
    "Sampling",
    "SteerEvalSettings",
    "SteerReport",
    "TokenChanges",
    "TokenConcepts",
    "WordLifts",
    "build_atlas",
    "concept_model",
    "default_atlas_folder",
    "describe_run_concepts",
    "edit_effects",
    "encode",
    "evaluate_run_steering",
    "generate",
    "inspect_text",
    "measure_effects",
    "open_run_teacher",
    "parse_steer",
    "read_held_out",
    "steering",
    "steering_candidates",
    "teacher_steering",
    "visible",
]
