"""Concepts: the dictionary (a sparse autoencoder), the frozen teacher, and attribution.

The names are imported when they are first used, so that a fitted dictionary is recognised without PyTorch.
"""

from typing import TYPE_CHECKING

from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.concepts.aligned import (
        UNREAD,
        AlignedFittedTeacher,
        AlignedTeacher,
        AlignedText,
        AlignedTexts,
        Window,
        pad_right,
    )
    from cocomix.concepts.check import (
        SAMPLE_TOKENS,
        Agreement,
        check_labeller,
        label_agreement,
        measure_agreement,
        measure_fit,
        require_agreement,
        require_fit,
    )
    from cocomix.concepts.decoder import FrozenDecoder
    from cocomix.concepts.dictionary import ConceptDictionary, SparseCodes, layer_normalize
    from cocomix.concepts.dictionary_folder import (
        Dictionary,
        DictionaryFit,
        DictionaryManifest,
        FitSettings,
        fit_identity,
    )
    from cocomix.concepts.fingerprints import (
        configuration_fingerprint,
        determining,
        files_fingerprint,
        has_other_weights,
        model_fingerprint,
        package_versions,
    )
    from cocomix.concepts.fit import first_blocks, fit_dictionary, spread_blocks
    from cocomix.concepts.labeller import (
        ConceptLabeller,
        ConceptLabels,
        FittedLabeller,
        LabellerConfig,
        Vocabulary,
        build_labeller,
        drop_without_target,
        labeller_config,
        labeller_config_type,
        labeller_kinds,
        register_labeller,
    )
    from cocomix.concepts.labellers.activation import ActivationConfig, ActivationLabeller
    from cocomix.concepts.labellers.attribution import (
        AttributionConfig,
        AttributionLabeller,
        CentredAttributionLabeller,
    )
    from cocomix.concepts.labellers.contextual import ContextualConfig, ContextualLabeller
    from cocomix.concepts.labellers.future_clusters import FutureClustersConfig, FutureClustersLabeller
    from cocomix.concepts.labellers.future_words import FutureWordsConfig, FutureWordsLabeller
    from cocomix.concepts.labellers.learned_tables import FittedTeacherLabeller
    from cocomix.concepts.labellers.own_states import OnlineConfig, OnlineLabeller
    from cocomix.concepts.labellers.random import RandomConfig, RandomLabeller
    from cocomix.concepts.labellers.teacher_labeller import TeacherLabeller, TeacherLabellerConfig, reads_hidden
    from cocomix.concepts.labellers.token_lookup import TokenLookupConfig, TokenLookupLabeller
    from cocomix.concepts.sources import DictionaryConfig, TeacherConfig, dictionary_layer
    from cocomix.concepts.teacher import ConceptTeacher, LoadedTeachers, load_teacher
    from cocomix.concepts.token_bytes import student_pieces

__all__ = [
    "SAMPLE_TOKENS",
    "UNREAD",
    "ActivationConfig",
    "ActivationLabeller",
    "Agreement",
    "AlignedFittedTeacher",
    "AlignedTeacher",
    "AlignedText",
    "AlignedTexts",
    "AttributionConfig",
    "AttributionLabeller",
    "CentredAttributionLabeller",
    "ConceptDictionary",
    "ConceptLabeller",
    "ConceptLabels",
    "ConceptTeacher",
    "ContextualConfig",
    "ContextualLabeller",
    "Dictionary",
    "DictionaryConfig",
    "DictionaryFit",
    "DictionaryManifest",
    "FitSettings",
    "FittedLabeller",
    "FittedTeacherLabeller",
    "FrozenDecoder",
    "FutureClustersConfig",
    "FutureClustersLabeller",
    "FutureWordsConfig",
    "FutureWordsLabeller",
    "LabellerConfig",
    "LoadedTeachers",
    "OnlineConfig",
    "OnlineLabeller",
    "RandomConfig",
    "RandomLabeller",
    "SparseCodes",
    "TeacherConfig",
    "TeacherLabeller",
    "TeacherLabellerConfig",
    "TokenLookupConfig",
    "TokenLookupLabeller",
    "Vocabulary",
    "Window",
    "build_labeller",
    "check_labeller",
    "configuration_fingerprint",
    "determining",
    "dictionary_layer",
    "drop_without_target",
    "files_fingerprint",
    "first_blocks",
    "fit_dictionary",
    "fit_identity",
    "has_other_weights",
    "label_agreement",
    "labeller_config",
    "labeller_config_type",
    "labeller_kinds",
    "layer_normalize",
    "load_teacher",
    "measure_agreement",
    "measure_fit",
    "model_fingerprint",
    "package_versions",
    "pad_right",
    "reads_hidden",
    "register_labeller",
    "require_agreement",
    "require_fit",
    "spread_blocks",
    "student_pieces",
]

__getattr__ = lazily(__name__)
