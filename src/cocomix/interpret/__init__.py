"""Reading the concepts a model predicts, and steering what it says with them."""

from cocomix.interpret.atlas_build import build_atlas
from cocomix.interpret.atlas_cards import AtlasManifest, AtlasSettings, ConceptCard, ConceptHit, Context, Histogram
from cocomix.interpret.atlas_effects import measure_effect
from cocomix.interpret.atlas_naming import NameEndpoint
from cocomix.interpret.concept_atlas import ConceptAtlas, default_atlas_folder
from cocomix.interpret.inspection import (
    ConceptDescription,
    NextToken,
    PredictedConcept,
    TokenConcepts,
    describe_concepts,
    inspect_text,
    render_table,
    render_text,
)
from cocomix.interpret.prompts import visible
from cocomix.interpret.steer_effects import SteerEvalSettings
from cocomix.interpret.steer_run import evaluate_run_steering
from cocomix.interpret.steering import (
    FACTOR_LIMIT,
    SteeringCandidate,
    generate,
    parse_steer,
    steering,
    steering_candidates,
)
from cocomix.interpret.teacher_steering import teacher_steering

__all__ = [
    "FACTOR_LIMIT",
    "AtlasManifest",
    "AtlasSettings",
    "ConceptAtlas",
    "ConceptCard",
    "ConceptDescription",
    "ConceptHit",
    "Context",
    "Histogram",
    "NameEndpoint",
    "NextToken",
    "PredictedConcept",
    "SteerEvalSettings",
    "SteeringCandidate",
    "TokenConcepts",
    "build_atlas",
    "default_atlas_folder",
    "describe_concepts",
    "evaluate_run_steering",
    "generate",
    "inspect_text",
    "measure_effect",
    "parse_steer",
    "render_table",
    "render_text",
    "steering",
    "steering_candidates",
    "teacher_steering",
    "visible",
]
