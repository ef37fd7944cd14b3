"""Counterparts of the paper's steering examples on a run: found by rule in its atlas, turned, and counted.

    python results/steering/themes.py RUN ATLAS OUTPUT.md

For each theme: candidates are the `CANDIDATES` concepts whose cards show it in most contexts, from the concept's token
on, of those that label at least `LABELS` of the tokens the atlas has read. The one that, turned up in the student,
puts most of the theme into texts from `CHOOSING` is taken. Then `PROMPTS` are continued with it turned by several
factors, in the student and, as the latent of the same concept, in the teacher: as in `steer-eval --turn add`, a factor
of n adds n times the value that the logit or latent usually has. Nothing is chosen by hand; the first sampled text of
every prompt is shown.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix import CoCoMixForCausalLM, ConceptEdit
from cocomix.concepts import ConceptTeacher
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.interpret import ConceptAtlas, ConceptCard, Context, generate, teacher_steering, visible
from cocomix.interpret.generation import continue_tokens
from cocomix.interpret.inspection import encode_together
from cocomix.interpret.run_teacher import open_run_teacher
from cocomix.interpret.survey import ConceptSurvey, survey_concepts

THEMES = {
    "web address": r"https?:|www\.|ftp:|\.org\b|\.com\b|\.html\b",
    "dollar, money": r"\$\s?\d|\b(dollars?|pounds?|money|guineas?|shillings?)\b",
    "number, phone": r"\d{3}",
    "month, year": r"\b(January|February|March|April|June|July|August|September|October|November|December)\b"
    r"|\b1[5-9]\d\d\b|\b20[012]\d\b",
    "politics, law": r"(?i)\b(politic\w*|government\w*|laws?|social\w*|capitalis\w*|anarchis\w*|states?|parliament)\b",
    "aggressive tone": r"(?i)\b(hate\w*|damn\w*|angr\w+|kill\w*|fools?|devil\w*|curse\w*|rascal|villain)\b|!",
}
PROMPTS = ("It was", "The following", "He looked at")
STUDENT, TEACHER = (-10.0, 0.0, 2.0, 5.0, 10.0), (0.0, 2.0, 5.0, 10.0)
SHOWN = {"student": 10.0, "teacher": 2.0}  # where both texts have about the same perplexity
CHOOSING = ("She said", "In the", "There is")
TEXTS, TOKENS, LABELS, CANDIDATES = 20, 40, 200, 16


def main() -> None:
    """Write the table of counts and the texts."""
    run = Run.open(Path(sys.argv[1]))
    model, tokenizer = run.model(), run.tokenizer()
    data = Tokens.open(run.manifest.data.path)
    teacher = open_run_teacher(run, data).teacher
    train = data.split("train")
    sample = torch.stack([train[index]["input_ids"] for index in range(0, len(train), len(train) // 512)])
    survey = survey_concepts(model, teacher, sample, window=TOKENS)
    heads = [f"student {factor:+g}" for factor in STUDENT] + [f"teacher {factor:+g}" for factor in TEACHER]
    rows = [
        f"| theme | concept | its terms | contexts with the theme | {' | '.join(heads)} |",
        "|---|---:|---|---:|" + "---:|" * len(heads),
    ]
    samples = []
    with ConceptAtlas.open(Path(sys.argv[2]), run=run) as atlas:
        cards = [atlas.card(concept) for concept in range(atlas.num_concepts)]
    for theme, pattern in THEMES.items():
        known = [card for card in cards if card.label_count >= LABELS and survey.mixed[card.id] > 0]
        known.sort(key=lambda card: in_contexts(card, pattern), reverse=True)
        found = {
            card.id: per_hundred(
                continued(model, tokenizer, [turned(survey.logit, card.id, SHOWN["student"])], CHOOSING, seed=1),
                tokenizer,
                pattern,
            )
            for card in known[:CANDIDATES]
        }
        card = max(known[:CANDIDATES], key=lambda card: found[card.id])
        counts = []
        for factor in STUDENT:
            edits = [turned(survey.logit, card.id, factor)]
            counts.append(per_hundred(continued(model, tokenizer, edits), tokenizer, pattern))
        for factor in TEACHER:
            with teacher_steering(teacher, [turned(survey.latent, card.id, factor)]) as decoder:
                counts.append(per_hundred(continued(decoder, tokenizer), tokenizer, pattern))
        terms = ", ".join(visible(term) for term in card.terms[:4]).replace("|", "\\|")
        contexts = f"{in_contexts(card, pattern)[0]} of {len(contexts_of(card))}"
        rows.append(
            f"| {theme} | {card.id} | {terms} | {contexts} | {' | '.join(f'{count:.2f}' for count in counts)} |"
        )
        samples += [f"**{theme}**, concept {card.id}", "", *shown(model, teacher, tokenizer, survey, card.id), ""]
    Path(sys.argv[3]).write_text("\n".join([*rows, "", *samples]), encoding="utf-8")


def contexts_of(card: ConceptCard) -> tuple[Context, ...]:
    """Where the concept is a label and where it is predicted, most clearly."""
    return (*card.label_contexts, *card.predicted_contexts)


def in_contexts(card: ConceptCard, pattern: str) -> tuple[int, int]:
    """How many of its contexts show the theme, and how often it is a label, to break ties."""
    return sum(
        bool(re.search(pattern, context.token + context.after)) for context in contexts_of(card)
    ), card.label_count


def turned(usual: Tensor, concept: int, factor: float, rows: tuple[int, ...] | None = None) -> ConceptEdit:
    """The edit that adds a concept's usual value, `factor` times."""
    return ConceptEdit(concept, "add", factor * float(usual[concept]), rows=rows)


def per_hundred(texts: Tensor, tokenizer: PreTrainedTokenizerBase, pattern: str) -> float:
    """How often the theme shows, per hundred generated tokens."""
    found = sum(len(re.findall(pattern, tokenizer.decode(text))) for text in texts)
    return 100.0 * found / texts.numel()


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[ConceptEdit] = (),
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
) -> Tensor:
    """`TEXTS` continuations of every prompt, without the prompts. [texts, TOKENS]"""
    input_ids, mask = encode_together(model, tokenizer, [prompt for prompt in prompts for _ in range(TEXTS)])
    every = continue_tokens(
        model, input_ids, mask, end=tokenizer.eos_token_id, max_new_tokens=TOKENS, edits=edits, temperature=0.8,
        top_k=50, seed=seed, stop_at_end=False, vocab_size=len(tokenizer),
    )  # fmt: skip
    return every[:, input_ids.shape[1] :]


def shown(
    model: CoCoMixForCausalLM,
    teacher: ConceptTeacher,
    tokenizer: PreTrainedTokenizerBase,
    survey: ConceptSurvey,
    concept: int,
) -> list[str]:
    """A table of texts: a row per prompt, unsteered and turned up in the student and in the teacher."""
    rows = [f"| as it is | student {SHOWN['student']:+g} | teacher {SHOWN['teacher']:+g} |", "|---|---|---|"]
    options: dict[str, Any] = {"max_new_tokens": 32, "temperature": 0.8, "seed": 0}
    for prompt in PROMPTS:
        edits = [turned(survey.logit, concept, SHOWN["student"], rows=(1,))]
        texts = generate(model, tokenizer, [prompt] * 2, edits=edits, **options)
        with teacher_steering(teacher, [turned(survey.latent, concept, SHOWN["teacher"])]) as decoder:
            texts += generate(decoder, tokenizer, [prompt], **options)
        cells = (f"{prompt}{text}".replace("|", "\\|").replace("\n", "↵ ") for text in texts)
        rows.append("| " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    main()
