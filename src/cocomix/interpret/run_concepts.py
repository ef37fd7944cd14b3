"""What the concepts of a run stand for, from the labels it was trained on."""

from collections.abc import Sequence
from pathlib import Path

from cocomix.data import Tokens
from cocomix.evaluation import Run, run_labels
from cocomix.interpret.inspection import ConceptDescription, describe_concepts

__all__ = ["describe_run_concepts"]


def describe_run_concepts(run: Run, concepts: Sequence[int]) -> dict[int, ConceptDescription]:
    """Describe concepts by the tokens they label in the run's own data.

    Args:
        run: a CoCoMix run.
        concepts: their indices.

    Returns:
        Descriptions by index; empty where the run's data or labels are no longer where it found them.
    """
    labels = run_labels(run)
    if labels is None or not Path(run.manifest.data.path).is_dir():
        return {}
    return describe_concepts(labels, Tokens.open(run.manifest.data.path), concepts)
