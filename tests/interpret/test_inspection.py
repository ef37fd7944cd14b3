import io
import math
from collections import Counter

import pytest
import torch
from rich.console import Console

from cocomix.interpret.inspection import (
    ConceptDescription,
    NextToken,
    PredictedConcept,
    TokenConcepts,
    describe_concepts,
    inspect_text,
    render_table,
    render_text,
)
from cocomix.interpret.prompts import visible
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import CONCEPTS, TOPK


@pytest.mark.parametrize("mixing", ["interleave", "none"])
def test_concepts_and_next_tokens_are_the_models_own(world, mixing):
    model = world.student(mixing)
    found = inspect_text(model, world.tokenizer, "list of the items", top=4, top_next=2)
    ids = torch.tensor([world.tokenizer.encode("list of the items")])
    with torch.no_grad():
        output = model(input_ids=ids, output_concept_logits=True)
    assert [entry.token for entry in found] == [world.tokenizer.decode([token]) for token in ids[0].tolist()]
    assert "".join(entry.token for entry in found) == "list of the items"
    for position, entry in enumerate(found):
        best = output.concept_logits[0, position].topk(4)
        assert entry.position == position
        assert [concept.id for concept in entry.concepts] == best.indices.tolist()
        assert [concept.rank for concept in entry.concepts] == [1, 2, 3, 4]
        assert [concept.logit for concept in entry.concepts] == pytest.approx(best.values.tolist(), abs=1e-5)
        likely = output.logits[0, position].softmax(-1).topk(2)
        assert [choice.probability for choice in entry.next_tokens] == pytest.approx(likely.values.tolist(), abs=1e-6)
        assert entry.next_tokens[0].token == world.tokenizer.decode([int(likely.indices[0])])


def test_inspection_refusals(world):
    model, tokenizer = world.student(), world.tokenizer
    with pytest.raises(CoCoMixError, match="has no concepts"):
        inspect_text(world.plain(), tokenizer, "list")
    for empty in ("", "  \n"):
        with pytest.raises(CoCoMixError, match="text is empty"):
            inspect_text(model, tokenizer, empty)
    length = len(tokenizer.encode("list of the items " * 9))
    with pytest.raises(CoCoMixError, match=f"text has {length} tokens.* 16"):
        inspect_text(model, tokenizer, "list of the items " * 9)
    for top in (0, TOPK + 1):
        with pytest.raises(CoCoMixError, match=rf"top={top} .*1 and {TOPK}"):
            inspect_text(model, tokenizer, "list", top=top)
    with pytest.raises(CoCoMixError, match="top_next=0"):
        inspect_text(model, tokenizer, "list", top_next=0)


def test_a_foreign_tokenizer_is_refused(world):
    from tests.evaluation.conftest import cocomix_model

    with pytest.raises(CoCoMixError, match="tokenizer"):
        inspect_text(cocomix_model(), world.tokenizer, "list of the")


def test_descriptions_equal_a_naive_count(world):
    blocks, labels = world.data.split("train"), world.labels.split("train")
    here: dict[int, Counter] = {concept: Counter() for concept in range(CONCEPTS)}
    after: dict[int, Counter] = {concept: Counter() for concept in range(CONCEPTS)}
    for index in range(6):
        tokens = blocks[index]["input_ids"].tolist()
        for position, wanted in enumerate(labels[index]["concept_labels"].tolist()):
            for concept in wanted:
                if concept != -100:
                    here[concept][tokens[position]] += 1
                    if position + 1 < len(tokens):
                        after[concept][tokens[position + 1]] += 1
    found = describe_concepts(world.labels, world.data, range(CONCEPTS), max_blocks=6, top=2)
    usual = Counter(token for index in range(6) for token in blocks[index]["input_ids"].tolist())

    def typical(counts):
        scores = {t: n * math.log((n / counts.total()) / (usual[t] / usual.total())) for t, n in counts.items()}
        best = sorted(scores, key=lambda token: -scores[token])[:2]
        return tuple((world.tokenizer.decode([token]), counts[token]) for token in best)

    for concept, description in found.items():
        assert description.count == here[concept].total()
        assert description.tokens == typical(here[concept])
        assert description.next_tokens == typical(after[concept])
    assert sum(description.count for description in found.values()) > 100


def test_descriptions_of_concepts_never_named_or_not_there(world):
    named = {int(c) for index in range(2) for c in world.labels.split("train")[index]["concept_labels"].flatten()}
    unnamed = next(concept for concept in range(CONCEPTS) if concept not in named)
    found = describe_concepts(world.labels, world.data, [unnamed], max_blocks=2)
    assert found[unnamed].count == 0
    assert found[unnamed].short() == "never a label"
    with pytest.raises(CoCoMixError, match=f"concept {CONCEPTS} does not exist"):
        describe_concepts(world.labels, world.data, [CONCEPTS])


def test_visible_shows_what_cannot_be_seen():
    assert visible(" a\n\tb") == "·a↵⇥b"
    assert visible("\x1b[31m\u200b") == "\\x1b[31m\\u200b"


def test_rendering_escapes_nothing_into_markup():
    entry = TokenConcepts(
        0, " [red]x\n", (PredictedConcept(3, 1.5, 1), PredictedConcept(7, -0.25, 2)), (NextToken("[/red]\x1b", 0.5),)
    )
    about = {3: ConceptDescription(3, 9, ((" [b]list", 5), ("\n", 4)), ())}
    line = render_text([entry], about)
    assert line == "·[red]x↵\t3 (1.50) [·[b]list ↵], 7 (-0.25)\t[/red]\\x1b (50%)"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_table([entry], about))
    printed = console.export_text()
    for cell in line.split("\t"):
        assert cell in printed
