"""The atlas' one pass over held-out text: what the student predicts at every position, and what the labels say.

How good the concepts are by it, beside linear probes of named properties as a reference.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cocomix.data import begin_of_text, positions_of_rows
from cocomix.evaluation.inference import batches, inference, require_measurable
from cocomix.evaluation.loss_slices import TOKEN_CLASSES, TokenClasses, seen_before, token_texts
from cocomix.evaluation.run_inputs import RunBlocks
from cocomix.interpret.atlas_cards import AtlasSettings, PropertyProbe
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.ignore import IGNORE

logger = logging.getLogger(__name__)

Array = NDArray[Any]
_SAMPLED_ELEMENTS = 2**26  # logits of all concepts at sampled positions: 256 MiB in float32


@dataclass(frozen=True)
class Reading:
    """What was seen, position by position; positions are counted over all blocks.

    Attributes:
        tokens: int32 [blocks, seq].
        ids: concepts in the student's top k. int32 [positions, k]
        logits: the student's logits for them. float32 [positions, k]
        labels: `IGNORE` = none; k_attr is 0 where there are no labels. int32 [positions, k_attr]
        label_logits: the student's logits for the labels. float32 [positions, k_attr]
        sample: positions at which everything is kept, evenly spread. int64 [sampled]
        sample_logits: the student's logits for all concepts there. float32 [sampled, n_concepts]
        sample_hidden: hidden states at `insert_layer` there, which the predictor reads. float32 [sampled, d_model]
    """

    tokens: Array
    ids: Array
    logits: Array
    labels: Array
    label_logits: Array
    sample: Array
    sample_logits: Array
    sample_hidden: Array

    @property
    def labelled(self) -> Array:
        """Whether a position has a label at all. bool [positions]"""
        labelled: Array = (self.labels != IGNORE).any(-1)
        return labelled


def read_held_out(model: CoCoMixForCausalLM, blocks: RunBlocks, settings: AtlasSettings) -> Reading:
    """Let the student read held-out blocks from `run_blocks`, with their labels if there are any, on its device;
    refused where there is no block, or data, labels and model do not belong together.
    """
    seq, n_concepts, device = blocks.block_size, model.config.num_concepts, model.device
    size = max(1, settings.batch_tokens // seq)
    require_measurable(model, blocks.rows, blocks.labels, size)
    count = len(blocks.rows)
    positions = count * seq
    sampled = min(positions, settings.sampled, max(512, _SAMPLED_ELEMENTS // n_concepts))
    sample = np.linspace(0, positions - 1, sampled).round().astype(np.int64)
    columns: dict[str, list[Array]] = {name: [] for name in Reading.__dataclass_fields__ if name != "sample"}
    hidden: list[Tensor] = []

    def keep_hidden(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden[:] = [output.last_hidden_state]

    start, hooked = 0, model.lower.register_forward_hook(keep_hidden)
    with hooked, inference(model, device), progress("reading", positions, "tokens") as advance:
        for batch in batches(model, blocks.rows, blocks.labels, count=count, batch_size=size, device=device):
            output = model(**batch.inputs, output_logits=False, output_concept_logits=True)
            logits = output.concept_logits.flatten(0, 1).float()  # [batch · seq, n_concepts]
            named = torch.empty(len(logits), 0, dtype=torch.int64, device=device)
            if batch.concept_labels is not None:
                named = batch.concept_labels.flatten(0, 1)
            here = sample[(sample >= start) & (sample < start + len(logits))] - start
            columns["tokens"].append(batch.input_ids.cpu().numpy().astype(np.int32))
            columns["ids"].append(output.concept_ids.flatten(0, 1).cpu().numpy().astype(np.int32))
            columns["logits"].append(output.concept_values.flatten(0, 1).float().cpu().numpy())
            columns["labels"].append(named.cpu().numpy().astype(np.int32))
            columns["label_logits"].append(logits.gather(1, named.clamp_min(0)).cpu().numpy())
            columns["sample_logits"].append(logits[here].cpu().numpy())
            columns["sample_hidden"].append(hidden[0].flatten(0, 1)[here].float().cpu().numpy())
            start += len(logits)
            advance(len(logits))
    return Reading(sample=sample, **{name: np.concatenate(parts) for name, parts in columns.items()})


_LEAST = 10  # positions with a property, and without it, that each half needs for a probe to be fitted and measured


def concept_quality(reading: Reading, n_concepts: int) -> dict[str, Array]:
    """Counts (int64) and scores (float64) of every concept, NaN where a score has no denominator. [n_concepts] each

    AUROC is exact where `reading.sample` holds every position; else the positions without the label are those of the
    sample (our choice: 4,096 of them bound its error by about 0.01).
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


def goes_on(tokenizer: PreTrainedTokenizerFast, tokens: Array) -> Array:
    """Whether a token goes on with the one before it; the first of a block or document does not. bool [blocks, seq]"""
    positions = positions_of_rows(torch.from_numpy(tokens), tokenizer.eos_token_id, begin_of_text(tokenizer))
    found: Array = positions.numpy() > 0
    return found


def token_properties(tokenizer: PreTrainedTokenizerFast, tokens: Array) -> dict[str, Array]:
    """Named properties of tokens, by rules that need no model: the classes of `TokenClasses`, and what needs more of
    the context than the token. bool [blocks · seq] each, from int [blocks, seq]
    """
    classes = TokenClasses(tokenizer).of(tokens)
    of = {name: classes == number for number, name in enumerate(TOKEN_CLASSES)}
    quotes = np.array(['"' in text for text in token_texts(tokenizer)])[tokens].cumsum(1)
    begun = goes_on(tokenizer, tokens)
    following = {f"{name} next": np.pad(of[name] & begun, ((0, 0), (0, 1)))[:, 1:] for name in ("punctuation", "name")}
    seen = seen_before(tokens, np.arange(len(tokens))[:, None])
    found = of | following | {"in quotes": quotes % 2 == 1, "seen before": seen}
    return {name: values.ravel() for name, values in found.items()}


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
