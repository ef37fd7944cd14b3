"""Reading the concepts a model predicts, and steering what it says with them."""

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
from cocomix.interpret.steering import (
    FACTOR_LIMIT,
    SteeringCandidate,
    generate,
    parse_steer,
    steering_candidates,
)

__all__ = [
    "FACTOR_LIMIT",
    "ConceptDescription",
    "NextToken",
    "PredictedConcept",
    "SteeringCandidate",
    "TokenConcepts",
    "describe_concepts",
    "generate",
    "inspect_text",
    "parse_steer",
    "render_table",
    "render_text",
    "steering_candidates",
    "visible",
]
