"""How good a student's concepts are on held-out text, beside linear probes of named properties as a reference."""

import logging
from importlib.util import find_spec

import numpy as np
from transformers import PreTrainedTokenizerFast

from cocomix.evaluation.token_classes import TOKEN_CLASSES, TokenClasses, token_texts
from cocomix.interpret.atlas_cards import PropertyProbe
from cocomix.interpret.atlas_pass import Array, Reading
from cocomix.runtime.ignore import IGNORE

logger = logging.getLogger(__name__)

_LEAST = 10
"""Positions with a property, and without it, that each half needs for a probe to be fitted and measured."""


def concept_quality(reading: Reading, n_concepts: int) -> dict[str, Array]:
    """Counts and scores of every concept; NaN where a score has no denominator.

    AUROC is exact where `reading.sample` holds every position; else the positions without the label are those of the
    sample (our choice: 4,096 of them bound its error by about 0.01).

    Returns:
        [n_concepts] each: id, predicted_count, label_count int64; density, label_density, precision, recall, lift and
        auroc float64.
    """
    predicted = np.bincount(reading.ids.ravel(), minlength=n_concepts)
    used = reading.labels != IGNORE
    labelled = reading.labelled
    labels = np.bincount(reading.labels[used], minlength=n_concepts)
    hit = used & (reading.labels[..., None] == reading.ids[:, None, :]).any(-1)
    hits = np.bincount(reading.labels[hit], minlength=n_concepts)
    there = np.bincount(reading.ids[labelled].ravel(), minlength=n_concepts)
    with np.errstate(divide="ignore", invalid="ignore"):
        label_density, precision, recall = labels / labelled.sum(), hits / there, hits / labels
        lift = precision / label_density
    return {
        "id": np.arange(n_concepts),
        "predicted_count": predicted,
        "label_count": labels,
        "density": predicted / len(reading.ids),
        "label_density": label_density,
        "precision": precision,
        "recall": recall,
        "lift": np.where(labels > 0, lift, np.nan),
        "auroc": _aurocs(reading, n_concepts),
    }


def _aurocs(reading: Reading, n_concepts: int) -> Array:
    """P(logit where it is a label > logit where it is not), ties counted half. float64 [n_concepts]"""
    scores = np.full(n_concepts, np.nan)
    kept = reading.labelled[reading.sample]
    logits, labels = reading.sample_logits[kept], reading.labels[reading.sample][kept]
    used = reading.labels != IGNORE
    if not used.any():
        return scores
    concepts, values = reading.labels[used], reading.label_logits[used]
    order = np.argsort(concepts, kind="stable")
    found, starts = np.unique(concepts[order], return_index=True)
    for concept, positive in zip(found, np.split(values[order], starts[1:]), strict=True):
        negative = np.sort(logits[~(labels == concept).any(-1), concept])
        if len(negative):
            below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
            scores[concept] = below.mean() / (2 * len(negative))
    return scores


def token_properties(tokenizer: PreTrainedTokenizerFast, tokens: Array) -> dict[str, Array]:
    """Named properties of tokens, by rules that need no model.

    Args:
        tokenizer: of the tokens.
        tokens: int [blocks, seq].

    Returns:
        bool [blocks · seq] each: the classes of `token_classes`, and what needs more of the context than the token.
    """
    classes = TokenClasses(tokenizer).of(tokens)
    of = {name: classes == number for number, name in enumerate(TOKEN_CLASSES)}
    quotes = np.array(['"' in text for text in token_texts(tokenizer)])[tokens].cumsum(1)
    following = {f"{name} next": np.pad(of[name], ((0, 0), (0, 1)))[:, 1:] for name in ("punctuation", "name")}
    found = of | following | {"in quotes": quotes % 2 == 1, "seen before": np.stack([_seen(row) for row in tokens])}
    return {name: values.ravel() for name, values in found.items()}


def _seen(row: Array) -> Array:
    """Whether a token of a block occurred in it before. bool [seq]"""
    seen = np.ones(len(row), dtype=bool)
    seen[np.unique(row, return_index=True)[1]] = False
    return seen


def probe_properties(reading: Reading, tokenizer: PreTrainedTokenizerFast) -> tuple[PropertyProbe, ...]:
    """Read each named property off the hidden states by logistic regression, and off the best single concept.

    The first half of the sampled positions chooses and fits, the second measures. A property without 10 positions of
    each kind in either half is left out; without scikit-learn all are, and that is said.
    """
    if find_spec("sklearn") is None:
        logger.warning("scikit-learn is not installed, so no probes are fitted; run: pip install 'cocomix[report]'.")
        return ()
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half, found = len(reading.sample) // 2, []
    ranks = rankdata(reading.sample_logits[:half], axis=0)  # [half, n_concepts]
    for name, everywhere in token_properties(tokenizer, reading.tokens).items():
        truth = everywhere[reading.sample]
        fitted, measured = truth[:half], truth[half:]
        if min(fitted.sum(), (~fitted).sum(), measured.sum(), (~measured).sum()) < _LEAST:
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        probe.fit(reading.sample_hidden[:half], fitted)
        positive = int(fitted.sum())
        aurocs = (ranks[fitted].mean(0) - (positive + 1) / 2) / (half - positive)  # [n_concepts], Mann-Whitney
        concept = int(np.abs(aurocs - 0.5).argmax())
        auroc = roc_auc_score(measured, reading.sample_logits[half:, concept])
        found.append(
            PropertyProbe(
                property=name,
                share=float(everywhere.mean()),
                probe=roc_auc_score(measured, probe.decision_function(reading.sample_hidden[half:])),
                concept=concept,
                concept_auroc=auroc if aurocs[concept] > 0.5 else 1 - auroc,
            )
        )
    return tuple(found)
