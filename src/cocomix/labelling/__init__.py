"""Stored labels: concept labels and teacher probabilities of prepared data, made shard by shard."""

from cocomix.labelling.finishing import finish_labels
from cocomix.labelling.labels import ConceptLabelStore, LabelManifest, LabelSettings
from cocomix.labelling.mixed_labels import MixedLabels
from cocomix.labelling.mixed_probabilities import MixedProbabilities
from cocomix.labelling.probabilities import TeacherProbabilities, write_probabilities
from cocomix.labelling.ray_engine import RaySettings
from cocomix.labelling.sharing import ShardPart
from cocomix.labelling.writing import write_labels

__all__ = [
    "ConceptLabelStore",
    "LabelManifest",
    "LabelSettings",
    "MixedLabels",
    "MixedProbabilities",
    "RaySettings",
    "ShardPart",
    "TeacherProbabilities",
    "finish_labels",
    "write_labels",
    "write_probabilities",
]
