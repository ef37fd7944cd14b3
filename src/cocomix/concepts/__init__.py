"""Concepts: the dictionary (a sparse autoencoder), the frozen teacher, and attribution."""

from cocomix.concepts.agreement import measure_agreement, require_agreement
from cocomix.concepts.attribution import AttributionSettings, ConceptLabels, label_agreement
from cocomix.concepts.check import DictionaryFit, measure_fit, require_fit
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.fit import FitReport, FitSettings, fit_dictionary
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig
from cocomix.concepts.teacher import ConceptTeacher, TeacherSource, check_tokenizer, load_teacher
from cocomix.concepts.tokens import TokenShardLike

__all__ = [
    "AttributionSettings",
    "ConceptDictionary",
    "ConceptLabels",
    "ConceptTeacher",
    "DictionaryConfig",
    "DictionaryFit",
    "FitReport",
    "FitSettings",
    "SparseCodes",
    "TeacherConfig",
    "TeacherSource",
    "TokenShardLike",
    "check_tokenizer",
    "fit_dictionary",
    "label_agreement",
    "load_teacher",
    "measure_agreement",
    "measure_fit",
    "require_agreement",
    "require_fit",
]
