"""Evaluations as people read them, alike in the terminal and on pages: losses beside references, recall, reliance."""

import math
from collections.abc import Mapping, Sequence

from cocomix.evaluation.formatting import NOTHING, percent, signed
from cocomix.evaluation.pages import Table
from cocomix.evaluation.references import ORDERS, References
from cocomix.evaluation.reliance import RunReliance
from cocomix.evaluation.run_evaluation import RunEvaluation

_REPLACED_BY = {
    "mean": "their average",
    "shuffle": "those of another text",
    "shuffle_same_token": "those of the same token elsewhere",
    "token_table": "a table of the current token",
    "oracle": "the labels",
    "oracle_ahead": "the true ones, which look ahead",
    "zero": "nothing (appendix)",
}


def loss_table(found: Sequence[RunEvaluation]) -> Table:
    """Losses of evaluations of the same tokens, and of the n-gram references of the first, falling."""
    one = found[0]
    bits = None if one.bits_per_byte is None else one.bits_per_byte / one.loss
    caption = f"{one.split} split, {one.targets:,} predicted tokens in blocks of {one.block_size}, {one.dtype}"
    return models_table({_name(each): each.loss for each in found}, one.references, caption, bits)


def models_table(losses: Mapping[str, float], references: References | None, caption: str, bits: float | None) -> Table:
    """Losses by name, among those of the n-gram references.

    Args:
        losses: nats per token.
        bits: bits per byte of one nat per token; `None` where the bytes are not known.
    """
    models = dict(losses)
    if references is not None:
        models |= {f"{order} table": getattr(references, order) for order in ORDERS}
        caption += f"; n-grams of {references.training_tokens:,} training tokens"
    rows = [
        (name, f"{loss:.4f}", f"{math.exp(loss):.2f}", NOTHING if bits is None else f"{bits * loss:.4f}")
        for name, loss in sorted(models.items(), key=lambda model: -model[1])
    ]
    units = ("loss, nats per token", "perplexity, per token", "bits per byte, of text")
    return Table(("model", *(f"{unit}, lower is better" for unit in units)), rows, caption=caption)


def recall_table(found: Sequence[RunEvaluation]) -> Table | None:
    """Concept recall of runs, each between a static list and a table of the current token; `None` without labels."""
    rows: dict[tuple[str, ...], None] = {}  # runs of the same labels have the same references
    for each in found:
        concepts = each.concepts
        if concepts is None or concepts.recall_at_32 is None or concepts.recall_at_labels is None:
            continue
        predicted = f"{concepts.concepts_predicted:,} of {concepts.num_concepts:,}"
        shown = {_name(each): (concepts.recall_at_labels, concepts.recall_at_32, predicted)}
        if (content := concepts.label_content) is not None:
            static = (content.static_recall_at_labels, content.static_recall_at_32, NOTHING)
            token = (content.token_recall_at_labels, content.token_recall_at_32, NOTHING)
            shown = {"static list": static, **shown, "current-token table": token}
        rows |= {(name, percent(first), percent(all32), used): None for name, (first, all32, used) in shown.items()}
    meanings = {
        "recall@labels": "Share of a token's labels among as many predictions as it can have labels.",
        "recall@32": "Share of a token's labels among 32 predictions. A model that only matches the current-token "
        "table has learnt no context.",
    }
    headings = ("predicted by", "recall@labels, higher is better", "recall@32, higher is better", "concepts predicted")
    return Table(headings, list(rows), caption="Recall of the concept labels", meanings=meanings) if rows else None


def reliance_table(each: RunEvaluation) -> Table | None:
    """What replacing the concepts does to a run's loss."""
    if each.reliance is None:
        return None
    kinds = each.reliance.kinds
    rows: list[tuple[str, ...]] = [
        (_REPLACED_BY[kind], signed(one.nats), reliance_interval(each.reliance, kind)) for kind, one in kinds.items()
    ]
    headings: tuple[str, ...] = (
        *("concepts replaced by", "loss, nats per token, above 0 = it hurts"),
        f"95% interval, over documents: {each.reliance.documents:,}",
    )
    shares = [one.share_of_gain for one in kinds.values()]
    if any(share is not None for share in shares):
        told = (NOTHING if share is None else percent(share) for share in shares)
        rows = [(*row, share) for row, share in zip(rows, told, strict=True)]
        headings = (*headings, "share, of the gain over the control")
    return Table(headings, rows, caption=f"Reliance of {_name(each)}, on its concepts")


def reliance_interval(reliance: RunReliance, kind: str) -> str:
    """The 95% interval of one replacement's nats per token; a dash of a single document, which has none."""
    one = reliance.kinds[kind]
    return f"{signed(one.low)} … {signed(one.high)}" if reliance.documents > 1 else NOTHING


def slice_table(found: Sequence[RunEvaluation], column: str) -> Table:
    """Mean loss by the values of one column of the slices."""
    names = {"token_class": "token class", "seen": "seen before in the context", "frequency": "training occurrences"}
    losses = [{part.value: part for part in each.slices if part.slice == column} for each in found]
    rows = [
        (value, f"{part.tokens:,}", *(f"{one[value].loss:.3f}" if value in one else NOTHING for one in losses))
        for value, part in losses[0].items()
    ]
    headings = [f"{each.run} (seed {each.seed}), nats per token, lower is better" for each in found]
    return Table((names.get(column, column), "tokens", *headings), rows, caption=f"Loss by {names.get(column, column)}")


def worse_than_bigram(name: str, loss: float, references: References | None) -> str | None:
    """A warning where a table of token pairs predicts better than a model; `None` otherwise."""
    if references is None or loss <= references.bigram:
        return None
    return (
        f"{name} is worse than a bigram table of its training tokens ({loss:.3f} against {references.bigram:.3f} nats "
        "per token): what it shows says little about models that have learnt the language; train it on more tokens."
    )


def concept_advice(each: RunEvaluation) -> list[str]:
    """What to do where a model hardly uses its dictionary, or its concepts drown what they are mixed with."""
    concepts, said = each.concepts, []
    size = None if each.reliance is None else each.reliance.size
    if concepts is not None and 2 * concepts.concepts_predicted < concepts.num_concepts:
        said.append(
            f"{each.run} predicts only {concepts.concepts_predicted:,} of its {concepts.num_concepts:,} concepts "
            f"anywhere in {each.targets:,} tokens; use a smaller dictionary (`cocomix sae --num-concepts`), fit it on "
            "more tokens so that its auxiliary loss (AuxK) revives dead concepts, or train on more text."
        )
    if size is not None and size > 1.0:
        said.append(
            f"{each.run}'s concept vector is {size:.1f} times as large as the hidden state and may drown it; try "
            "concept_weights: softmax."
        )
    return said


def _name(each: RunEvaluation) -> str:
    return f"{each.run}, seed {each.seed}"
