"""Pairs by rules, and their scores by a table whose answers are known."""

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cocomix.evaluation import minimal_pairs
from cocomix.evaluation.minimal_pairs import (
    MISTAKES,
    PREPOSITIONS,
    Pair,
    _accuracies,
    make_pairs,
    measure_pairs,
    score_pairs,
)
from cocomix.evaluation.pages import NOTHING
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from tests.command_line import Cli
from tests.evaluation.conftest import VOCAB, cocomix_model
from tests.workshop import Workshop

CPU = torch.device("cpu")


class Table(nn.Module):
    """log p(next | this) from a table, whatever came before."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
        self.log_p = nn.Parameter(table.log_softmax(-1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.log_p[input_ids])


def test_mistakes_are_those_described() -> None:
    generator = np.random.default_rng(0)
    assert MISTAKES["agreement"]("These red books say this is so.", generator) == "This red books say this is so."
    assert MISTAKES["agreement"]("He says this and this word.", generator) == "He says this and these word."
    assert MISTAKES["agreement"]("Thistles and this.", generator) is None
    assert MISTAKES["order"]("The old house was in the way.", generator) == "The house old was in the way."
    assert MISTAKES["order"]("She had, the very same one.", generator) is None
    found = {MISTAKES["preposition"]("They go to town.", generator) for _ in range(200)}
    assert found == {f"They go {word} town." for word in PREPOSITIONS if word != "to"}
    assert MISTAKES["preposition"]("Together, often.", generator) is None


def test_pairs_are_few_of_a_document_and_the_same_each_time() -> None:
    documents = [
        "We put these big stones in the deep river today. " * 9 + "Too short.",
        "",
        "is it the same or not so",
    ]
    pairs = make_pairs(documents, limit=100)
    assert {kind: sum(pair.kind == kind for pair in pairs) for kind in MISTAKES} == dict.fromkeys(MISTAKES, 5)
    assert {pair.document for pair in pairs} == {0}
    assert all(pair.good != pair.bad for pair in pairs)
    assert pairs == make_pairs(documents, limit=100)
    assert len(make_pairs(documents, limit=2)) == 2 * len(MISTAKES)


def test_scores_are_sums_of_a_tables_log_probabilities() -> None:
    model, sentences = Table(), [[0, 5, 7, 2], [0, 9], [0, 5, 7, 3, 1, 4]]
    scores = score_pairs(model, sentences, batch_size=2, device=CPU)  # type: ignore[arg-type]
    for score, ids in zip(scores, sentences, strict=True):
        assert score == pytest.approx(sum(float(model.log_p[a, b]) for a, b in pairwise(ids)), abs=1e-5)
    student = cocomix_model()
    alone = [score_pairs(student, [ids], batch_size=1, device=CPU)[0] for ids in sentences]
    np.testing.assert_allclose(score_pairs(student, sentences, batch_size=3, device=CPU), alone, rtol=1e-4)


def test_accuracy_counts_ties_half_and_has_an_interval() -> None:
    pairs = [Pair("order", "", "", document) for document in (0, 0, 1, 2)] + [Pair("agreement", "", "", 2)]
    found = {one.kind: one for one in _accuracies(pairs, np.array([1.0, -2.0, 0.0, 3.0, 0.5]))}
    assert list(found) == ["agreement", "order", "all"]
    assert (found["order"].accuracy, found["order"].pairs, found["order"].documents) == (2.5 / 4, 4, 3)
    assert found["all"].accuracy == pytest.approx(3.5 / 5)
    assert 0 <= found["order"].low < found["order"].accuracy < found["order"].high <= 1
    assert found["agreement"].interval == NOTHING  # of one document


def test_eval_measures_them_by_name(workshop: Workshop, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = ["a list of the key items"] * 3
    monkeypatch.setattr(minimal_pairs, "_documents", lambda *_: documents)
    found = json.loads(cli("eval", workshop.cocomix_run, "--tasks", "minimal_pairs", "--limit", 4, "--json").out)
    assert {one["kind"] for one in found["kinds"]} == {"order", "preposition", "all"}
    (file,) = workshop.cocomix_run.glob("evaluations/minimal_pairs-4-float32/minimal_pairs.json")
    assert json.loads(file.read_text()) == found
    cli.refuses("eval", workshop.cocomix_run, "--tasks", "minimal_pairs,piqa", says="minimal_pairs")
    cli.refuses("eval", workshop.cocomix_run, "--tasks", "minimal_pairs", "--limit", 0, says="limit=0")
    with pytest.raises(CoCoMixError, match="batch_size=0"):
        measure_pairs(Run.open(workshop.cocomix_run), device=CPU, batch_size=0)
    monkeypatch.setattr(minimal_pairs, "_documents", lambda *_: ["12 34"])
    cli.refuses("eval", workshop.cocomix_run, "--tasks", "minimal_pairs", says="English")
