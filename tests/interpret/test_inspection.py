import shutil
from collections import Counter

import pytest
import torch

from cocomix.artifacts import read_json, write_json
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.interpret.inspection import describe_run_concepts, inspect_text
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import TOPK
from tests.workshop import CONCEPTS


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


def test_runs_concepts_are_described_by_the_words_at_their_labels(workshop):
    run = Run.open(workshop.cocomix_run)
    data, store = Tokens.open(workshop.data), Labels.open(workshop.labels).split("train")
    counts = Counter(int(c) for row in range(len(store)) for c in store[row]["concept_labels"].flatten() if c >= 0)
    found = describe_run_concepts(run, range(CONCEPTS))
    assert len(data.split("train")) <= 512, "otherwise only the first blocks count"
    for concept, about in found.items():
        assert about.count == counts[concept]
        for words in (about.terms, about.next_terms):
            assert [lift for _, lift in words] == sorted((lift for _, lift in words), reverse=True)
            assert all(lift > 1 for _, lift in words)
        assert about.name == (", ".join(word for word, _ in about.terms[:3]) or f"concept {concept}")
    assert sum(bool(about.terms) for about in found.values()) > 20
    with pytest.raises(CoCoMixError, match=str(CONCEPTS)):
        describe_run_concepts(run, [CONCEPTS])


def test_nothing_is_said_of_concepts_whose_labels_are_gone(workshop, tmp_path):
    copy = shutil.copytree(workshop.cocomix_run, tmp_path / "run")
    manifest = read_json(copy / "manifest.json")
    manifest["labels"]["path"] = str(tmp_path / "gone")
    write_json(copy / "manifest.json", manifest)
    assert describe_run_concepts(Run.open(copy), [3]) == {}
