"""Concepts: the dictionary (a sparse autoencoder), the frozen teacher, attribution, and the labels they give."""

from cocomix.concepts.attribution import AttributionSettings, ConceptLabels, label_agreement
from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes
from cocomix.concepts.teacher import ConceptTeacher, load_teacher

__all__ = [
    "AttributionSettings",
    "ConceptDictionary",
    "ConceptLabels",
    "ConceptTeacher",
    "SparseCodes",
    "label_agreement",
    "load_teacher",
]
