"""Peers that are forms of mixing: each trains by a recipe, goes on where it was stopped, and says what it costs."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cocomix.artifacts import read_json
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.model import account
from cocomix.model.accounting import build_model
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import plan_run, train
from tests.model.factories import plain
from tests.training.test_resume import Killed, assert_same_run, kill_at
from tests.workshop import BLOCK, CONCEPTS, Workshop

PEERS: dict[str, dict[str, Any]] = {
    "loop": {"mixing": "loop", "insert_layer": 0, "repeats": 2},
    "bigram table": {"mixing": "plain", "bigram_rows": 100},
    "ponder": {"mixing": "ponder", "insert_layer": 0, "repeats": 2},
}
ARMS = {"loop": "loop, n 2", "bigram table": "plain, bigram table, 100 rows", "ponder": "ponder, J 2"}
WIDTHS = {"loop": [1, 1, 1], "bigram table": [1], "ponder": [1, 2, 2, 2]}  # places of a token in each pass of the stack
PASSES_OF_MANY = ("loop", "ponder")


def changes(name: str, **others: Any) -> dict[str, Any]:
    training = {"logging_steps": 1, "save_steps": 1}
    given = {"name": "run", "labels": None, "tokens": 3 * 8 * BLOCK, "model": PEERS[name], "training": training}
    return {**given, **others}


@pytest.mark.parametrize("name", PEERS)
def test_it_trains_with_documents_apart_and_goes_on_where_it_was_stopped(
    name: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = changes(name, document_masks=True)
    whole = train(workshop.recipe("cocomix", **given), tmp_path / "whole")
    manifest = read_json(whole / "manifest.json")
    assert (manifest["arm"], manifest["mixing"], manifest["labels"]) == (ARMS[name], PEERS[name]["mixing"], None)
    assert manifest["final"]["eval_loss"] > 0
    with monkeypatch.context() as patched:
        kill_at(patched, 2)
        with pytest.raises(Killed):
            train(workshop.recipe("cocomix", **given), tmp_path / "run")
    train(workshop.recipe("cocomix", **given), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("name", PEERS)
def test_its_flops_are_counted_by_the_stacks_a_token_passes(name: str, workshop: Workshop, tmp_path: Path) -> None:
    run = train(workshop.recipe("cocomix", **changes(name, tokens=8 * BLOCK)), tmp_path / "run")
    counted = read_json(run / "manifest.json")
    d, layers, vocab = 16, 3, read_json(run / "config.json")["backbone"]["vocab_size"]
    visible = {width: (width * BLOCK + 1) / 2 for width in (1, 2)}  # places that one attends to, at the mean
    forward = 2 * vocab * d + sum(layers * width * (24 * d * d + 4 * d * visible[width]) for width in WIDTHS[name])
    assert counted["flops_per_token"]["training"] == pytest.approx(3 * forward)
    extra = 100 * d + layers if name == "bigram table" else 0
    decoder = account(plain("gpt2", n_embd=d, n_layer=layers, n_head=2, vocab_size=vocab, n_positions=BLOCK))
    assert counted["parameters"]["total"] == decoder.total_parameters + extra


@pytest.mark.parametrize("name", PASSES_OF_MANY)
def test_its_baseline_is_the_plain_decoder_of_the_same_flops(name: str, workshop: Workshop) -> None:
    recipe = workshop.recipe("ntp", **changes(name, baseline="flops"))
    data = Tokens.open(workshop.data)
    found = plan_run(recipe, data).config
    target = plan_run(workshop.recipe("cocomix", **changes(name)), data).config
    assert (recipe.arm, found.model_type) == ("ntp, same FLOPs", "gpt2")
    flops = [account(build_model(config), BLOCK).forward_flops_per_token for config in (found, target)]
    assert flops[0] == pytest.approx(flops[1], rel=0.1)
    with pytest.raises(ValidationError, match="baseline: flops needs objective: ntp"):
        workshop.recipe("cocomix", **changes(name, baseline="flops"))


def test_a_table_of_pairs_goes_with_ntp_its_baselines_and_concepts(workshop: Workshop, tmp_path: Path) -> None:
    model = {"mixing": "add", "bigram_rows": 100}
    for name, given in (("ntp", {}), ("wider", {"baseline": "flops"}), ("cocomix", {})):
        objective = "ntp" if name == "wider" else name
        sized = {**model, "num_concepts": CONCEPTS} if objective == "ntp" else model
        recipe = workshop.recipe(objective, name=name, tokens=3 * 8 * BLOCK, model=sized, **given)
        run = Run.open(train(recipe, tmp_path / name))
        student = run.model()
        assert student.bigram.table.weight.shape == (100, student.config.hidden_size)
        assert student.bigram.table.weight.any()
        assert student.config.mixing == ("add" if name == "cocomix" else "plain")
        assert "bigram table, 100 rows" in str(run.manifest.arm)


def test_what_does_not_go_together_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match=r"superposition .*bigram_rows=100"):
        train(workshop.recipe("cocomix", **changes("bigram table", auxiliary={"superposition": {}})), tmp_path / "bags")
    with pytest.raises(CoCoMixError, match="insert_layer=1"):
        train(workshop.recipe("cocomix", **changes("ponder", model={"mixing": "ponder"})), tmp_path / "above")
    with pytest.raises(ValidationError, match="repeats"):
        workshop.recipe("cocomix", **changes("loop", model={"mixing": "loop", "repeats": 0}))
    apart = changes("ponder", document_masks=True, model={**PEERS["ponder"], "upper_positions": "token"})
    with pytest.raises(ValidationError, match="upper_positions"):
        workshop.recipe("cocomix", **apart)
