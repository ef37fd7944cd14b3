"""Counterparts of the paper's steering examples on the run of this folder: found by rule, turned, and counted.

    python results/steering/themes.py RUN ATLAS OUTPUT.md

For each theme: candidates are the concepts whose atlas cards mention its words; the one whose logit times ten raises
the log-probability of the theme's tokens most, averaged over a little validation text, is taken. Then prompts are
continued with the concept's logit multiplied by several factors, in the student and, as the latent of the same concept,
in the teacher. Nothing is chosen by hand; the first sampled text of every prompt is shown.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix import CoCoMixForCausalLM, ConceptEdit
from cocomix.data import PreparedData
from cocomix.evaluation import Run
from cocomix.interpret import ConceptAtlas, generate, teacher_steering, visible
from cocomix.interpret.generation import continue_tokens
from cocomix.interpret.prompts import encode_together
from cocomix.interpret.run_teacher import open_run_teacher

THEMES = {
    "web address": ("http", "www", "html", "url", "link", "page"),
    "dollar, money": ("$", "dollar", "money", "price", "paid", "pounds"),
    "number, phone": ("phone", "number", "call", "digits"),
    "month, year": ("January", "June", "July", "month", "year", "date"),
    "politics, law": ("law", "government", "state", "court", "king", "political"),
    "aggressive tone": ("hate", "damn", "anger", "kill", "fool", "cried"),
}
PROMPTS = ("It was", "The following", "He looked at")
FACTORS = (-10.0, 1.0, 5.0, 10.0)
TEXTS, TOKENS, HITS = 20, 40, 8


def theme_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]) -> Tensor:
    """Ids of the tokens that are one of the words, up to case and a space before it."""
    wanted = {word.lower() for word in words}
    return torch.tensor(
        [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().lower() in wanted], dtype=torch.int64
    )


def log_probabilities(model: CoCoMixForCausalLM, text: Tensor, edits: tuple[ConceptEdit, ...] = ()) -> Tensor:
    """Of every token at every position, averaged over positions. [vocab]"""
    with torch.inference_mode():
        logits = model(text, use_cache=False, concept_edits=edits).logits
    return logits.log_softmax(-1).flatten(0, 1).mean(0)


def choose(
    model: CoCoMixForCausalLM, atlas: ConceptAtlas, words: tuple[str, ...], tokens: Tensor, text: Tensor
) -> int | None:
    """The candidate that raises the theme's tokens most; `None` where no card mentions them."""
    candidates = {hit.id for word in words for hit in atlas.search(word, HITS)}
    candidates = {concept for concept in candidates if atlas.card(concept).predicted_count > 0}
    before = log_probabilities(model, text)[tokens]
    rise = {
        concept: float((log_probabilities(model, text, (ConceptEdit(concept, "scale", 10.0),))[tokens] - before).mean())
        for concept in sorted(candidates)
    }
    return max(rise, key=rise.__getitem__) if rise else None


def per_hundred(texts: Tensor, tokens: Tensor) -> float:
    """Theme tokens per hundred generated ones."""
    return 100.0 * float(torch.isin(texts, tokens).float().mean())


def main() -> None:
    """Write the table of counts and the texts."""
    run = Run.open(Path(sys.argv[1]))
    model, tokenizer = run.model(), run.tokenizer()
    data = PreparedData.open(run.manifest.data.path)
    teacher = open_run_teacher(run, data).teacher
    blocks = data.split("validation")
    text = torch.stack([blocks[index]["input_ids"] for index in range(8)])
    rates = [
        "| theme | concept | its terms | "
        + " | ".join(f"student × {factor:g}" for factor in FACTORS)
        + " | teacher × 1 | teacher × 10 |",
        "|---|---:|---|" + "---:|" * (len(FACTORS) + 2),
    ]
    samples = []
    with ConceptAtlas.open(Path(sys.argv[2]), run=run) as atlas:
        for theme, words in THEMES.items():
            tokens = theme_tokens(tokenizer, words)
            concept = choose(model, atlas, words, tokens, text) if len(tokens) > 0 else None
            if concept is None:
                rates.append(f"| {theme} | | no token or no card for its words |" + " |" * (len(FACTORS) + 2))
                continue
            counts = [
                per_hundred(continued(model, tokenizer, (ConceptEdit(concept, "scale", factor),)), tokens)
                for factor in FACTORS
            ]
            for factor in (1.0, 10.0):
                with teacher_steering(teacher, (ConceptEdit(concept, "scale", factor),)) as decoder:
                    counts.append(per_hundred(continued(decoder, tokenizer), tokens))
            terms = ", ".join(visible(term) for term in atlas.card(concept).terms[:3]).replace("|", "\\|")
            rates.append(f"| {theme} | {concept} | {terms} | " + " | ".join(f"{count:.2f}" for count in counts) + " |")
            samples += [f"**{theme}**, concept {concept}", "", *shown(model, tokenizer, concept), ""]
    Path(sys.argv[3]).write_text("\n".join([*rates, "", *samples]) + "\n", encoding="utf-8")


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, edits: tuple[ConceptEdit, ...] = ()
) -> Tensor:
    """`TEXTS` continuations of every prompt, without the prompts. [texts, TOKENS]"""
    prompts = [prompt for prompt in PROMPTS for _ in range(TEXTS)]
    input_ids, mask = encode_together(model, tokenizer, prompts)
    every = continue_tokens(
        model, input_ids, mask, end=tokenizer.eos_token_id, max_new_tokens=TOKENS, edits=edits, temperature=0.8,
        top_k=50, seed=0, stop_at_end=False, vocab_size=len(tokenizer),
    )  # fmt: skip
    return every[:, input_ids.shape[1] :]


def shown(model: CoCoMixForCausalLM, tokenizer: PreTrainedTokenizerBase, concept: int) -> list[str]:
    """A table of texts: a row per prompt, unsteered and turned up and down."""
    rows = ["| as it is | × 10 | × −10 |", "|---|---|---|"]
    for prompt in PROMPTS:
        edits = [ConceptEdit(concept, "scale", factor, rows=(row,)) for row, factor in ((1, 10.0), (2, -10.0))]
        texts = generate(model, tokenizer, [prompt] * 3, edits=edits, max_new_tokens=24, temperature=0.8, seed=0)
        cells = (f"{prompt}{text}".replace("|", "\\|").replace("\n", "↵ ") for text in texts)
        rows.append("| " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    main()
