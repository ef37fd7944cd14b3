"""The last stage of the demo: evaluate every student, look at concepts, steer once, write the page, print the table."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from cocomix.data import VALIDATION
from cocomix.data import Tokens as TokenFolder
from cocomix.evaluation import (
    Code,
    Paragraph,
    Run,
    RunEvaluation,
    Section,
    SideBySide,
    Table,
    Tokens,
    compare,
    evaluate_run,
    reliance_section,
    summary,
    write_report,
)
from cocomix.interpret import describe_run_concepts, generate, inspect_text, steering_candidates, visible
from cocomix.model import ConceptEdit
from cocomix.runtime.device import default_device

__all__ = ["write_demo_report"]

logger = logging.getLogger(__name__)

_PROMPT = "Return the number of"
_INSPECTED_TOKENS = 48
_STEERING_BLOCKS = 4


def write_demo_report(directory: Path, folders: Sequence[Path]) -> Path:
    """Measure the demo's runs and put everything on one page.

    Args:
        directory: the demo's folder; `report` inside it is written anew.
        folders: run folders, the baseline first.

    Returns:
        The page.
    """
    runs = [Run.open(folder) for folder in folders]
    device = default_device()
    measured = [evaluate_run(run, device=device, batch_size=32) for run in runs]
    comparison = compare(runs)
    logger.info("")
    logger.info(comparison.to_markdown())
    for line in summary(comparison):
        logger.info(line)
    reliances = {result.run: result.reliance for result in measured if result.reliance is not None}
    # The best student that mixes concepts in is the one worth looking into.
    mixing = [(result.loss, run) for result, run in zip(measured, runs, strict=True) if result.reliance]
    best = min(mixing, key=lambda pair: pair[0])[1]
    sections = (
        _evaluation_section(measured),
        reliance_section(reliances),
        _inspection_section(best),
        _steering_section(best),
        _commands_section(directory, runs),
    )
    output = directory / "report"
    if output.exists():
        shutil.rmtree(output)
    page = write_report(comparison, output, title="CoCoMix demo", sections=sections)
    logger.info(f"\nThe report: {page.resolve().as_uri()}")
    return page


def _evaluation_section(measured: Sequence[RunEvaluation]) -> Section:
    rows = []
    for value in measured:
        bits = "—" if value.bits_per_byte is None else f"{value.bits_per_byte:.3f}"
        found = None if value.concepts is None else value.concepts.recall_at_32
        recall = "—" if found is None else f"{found:.1%}"
        rows.append((value.run, f"{value.loss:.3f}", f"{value.perplexity:.1f}", bits, recall))
    return Section(
        "Final evaluation",
        (
            Paragraph(
                "Every validation document, in float32. Concept recall: how many of a token's labelled concepts are "
                "among the 32 that the model predicts."
            ),
            Table(("run", "nats per token", "perplexity", "bits per byte", "concept recall"), rows),
        ),
    )


def _inspection_section(run: Run) -> Section:
    """One text of the validation split, shaded by the concept that is predicted there most often."""
    blocks = TokenFolder.open(run.manifest.data.path).split(VALIDATION)
    tokenizer = run.tokenizer()
    text = tokenizer.decode(blocks[0]["input_ids"][:_INSPECTED_TOKENS], skip_special_tokens=True)
    tokens = inspect_text(run.model(), tokenizer, text, top=32)
    strongest = [token.concepts[0].id for token in tokens]
    concept = max(set(strongest), key=lambda one: (strongest.count(one), -one))
    described = describe_run_concepts(run, sorted({concept, *strongest}))
    meaning = described[concept].name if concept in described else "no labels at hand"
    logits = [next((c.logit for c in token.concepts if c.id == concept), 0.0) for token in tokens]
    peak = max(max(logits), 1e-9)
    shaded = []
    for token, logit in zip(tokens, logits, strict=True):
        first = token.concepts[0]
        known = f" ({described[first.id].name})" if first.id in described else ""
        shaded.append((token.token, logit / peak, f"strongest: concept {first.id}{known}, logit {first.logit:.1f}"))
    logger.info(f"\nConcept {concept}, most typical at: {meaning}. Where {run.manifest.name} predicts it:")
    pairs = zip(tokens, logits, strict=True)
    logger.info("".join(f"[{token.token}]" if logit > 0.5 * peak else token.token for token, logit in pairs))
    return Section(
        "One concept, inspected",
        (
            Paragraph(
                f"Concept {concept} is the strongest prediction of {run.manifest.name} at most tokens of this text. "
                f"In the labels it is most typical of: {meaning}."
            ),
            Tokens(shaded, f"Shade: the logit of concept {concept}. Point at a token for its strongest concept."),
        ),
    )


def _steering_section(run: Run) -> Section:
    """The same prompt and seed, untouched and with one concept turned up and down."""
    model, tokenizer = run.model(), run.tokenizer()
    blocks = TokenFolder.open(run.manifest.data.path).split(VALIDATION)
    batch = torch.stack([blocks[index]["input_ids"] for index in range(min(_STEERING_BLOCKS, len(blocks)))])
    candidates = steering_candidates(model, tokenizer, batch)
    if not candidates:
        return Section("One generation, steered", (Paragraph("No concept of this model can be steered."),))
    chosen = candidates[0].effect
    raised = ", ".join(visible(token) for token, _ in chosen.raised)
    columns = []
    for heading, dose in (("untouched", 0.0), ("turned up", 1.0), ("turned down", -1.0)):
        edits = [ConceptEdit(chosen.concept, "add", dose * chosen.amount)]
        text = generate(model, tokenizer, _PROMPT, max_new_tokens=40, edits=edits, temperature=0.7, seed=0)[0]
        columns.append((f"concept {chosen.concept} {heading}", _PROMPT + text))
        logger.info(f"\nConcept {chosen.concept} {heading}: {_PROMPT}{text}")
    return Section(
        "One generation, steered",
        (
            Paragraph(
                f"Concept {chosen.concept} of {run.manifest.name}: of the frequently predicted concepts, the one that "
                f"changes the next-token distribution most ({chosen.divergence:.2f} nats) when {chosen.amount:.1f} is "
                f"added to its logit. It raises: {raised}. Same prompt, same seed; a model this small writes no "
                f"sense either way."
            ),
            SideBySide(columns),
        ),
    )


def _commands_section(directory: Path, runs: Sequence[Run]) -> Section:
    best = runs[-1].path
    names = " ".join(str(run.path) for run in runs)
    return Section(
        "Look further",
        (
            Code(
                f'cocomix inspect {best} "Return the number of items."\n'
                f'cocomix generate {best} "Return the number of" --steer 12+5\n'
                f"cocomix eval {best}\n"
                f"cocomix compare {names} --output {directory}-comparison"
            ),
        ),
    )
