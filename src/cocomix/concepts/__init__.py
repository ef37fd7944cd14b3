"""Concepts: the dictionary (a sparse autoencoder), the frozen teacher, attribution, and the labels they give."""

from cocomix.concepts.agreement import measure_agreement, require_agreement
from cocomix.concepts.attribution import AttributionSettings, ConceptLabels, label_agreement
from cocomix.concepts.check import DictionaryFit, measure_fit, require_fit
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.finishing import finish_labels
from cocomix.concepts.fit import FitReport, FitSettings, fit_dictionary
from cocomix.concepts.labelling import write_labels
from cocomix.concepts.labels import ConceptLabelStore, LabelManifest, LabelSettings
from cocomix.concepts.mixed_labels import MixedLabels
from cocomix.concepts.mixed_probabilities import MixedProbabilities
from cocomix.concepts.probabilities import TeacherProbabilities, write_probabilities
from cocomix.concepts.ray_engine import RaySettings
from cocomix.concepts.sharing import ShardPart
from cocomix.concepts.teacher import ConceptTeacher, TeacherSource, check_tokenizer, load_teacher
from cocomix.concepts.tokens import TokenShardLike

__all__ = [
    "AttributionSettings",
    "ConceptDictionary",
    "ConceptLabelStore",
    "ConceptLabels",
    "ConceptTeacher",
    "DictionaryFit",
    "FitReport",
    "FitSettings",
    "LabelManifest",
    "LabelSettings",
    "MixedLabels",
    "MixedProbabilities",
    "RaySettings",
    "ShardPart",
    "SparseCodes",
    "TeacherProbabilities",
    "TeacherSource",
    "TokenShardLike",
    "check_tokenizer",
    "finish_labels",
    "fit_dictionary",
    "label_agreement",
    "load_teacher",
    "measure_agreement",
    "measure_fit",
    "require_agreement",
    "require_fit",
    "write_labels",
    "write_probabilities",
]
