"""Concepts: the dictionary (a sparse autoencoder), the frozen teacher, and attribution."""

from cocomix.concepts.agreement import label_agreement, measure_agreement, require_agreement
from cocomix.concepts.aligned import AlignedTeacher
from cocomix.concepts.check import DictionaryFit, measure_fit, require_fit
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.fit import FitReport, FitSettings, fit_dictionary
from cocomix.concepts.labeller import (
    IGNORE,
    AnyLabellerConfig,
    ConceptLabeller,
    ConceptLabels,
    FittedLabeller,
    LabellerConfig,
    build_labeller,
    compare_fingerprints,
    labeller_config,
    labeller_kinds,
    register_labeller,
)
from cocomix.concepts.labellers import (
    ActivationLabeller,
    AttributionLabeller,
    RandomLabeller,
    TeacherLabeller,
    TeacherLabellerConfig,
    TokenLookupLabeller,
)
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig, open_concept_teacher
from cocomix.concepts.teacher import ConceptTeacher, TeacherSource, check_tokenizer, load_teacher
from cocomix.concepts.tokens import TokenShardLike

__all__ = [
    "IGNORE",
    "ActivationLabeller",
    "AlignedTeacher",
    "AnyLabellerConfig",
    "AttributionLabeller",
    "ConceptDictionary",
    "ConceptLabeller",
    "ConceptLabels",
    "ConceptTeacher",
    "DictionaryConfig",
    "DictionaryFit",
    "FitReport",
    "FitSettings",
    "FittedLabeller",
    "LabellerConfig",
    "RandomLabeller",
    "SparseCodes",
    "TeacherConfig",
    "TeacherLabeller",
    "TeacherLabellerConfig",
    "TeacherSource",
    "TokenLookupLabeller",
    "TokenShardLike",
    "build_labeller",
    "check_tokenizer",
    "compare_fingerprints",
    "fit_dictionary",
    "label_agreement",
    "labeller_config",
    "labeller_kinds",
    "load_teacher",
    "measure_agreement",
    "measure_fit",
    "open_concept_teacher",
    "register_labeller",
    "require_agreement",
    "require_fit",
]
