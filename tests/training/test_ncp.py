"""The objective `ncp` of ConceptLM: its counts and numbers by hand, two steps, costs, what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.artifacts import read_json
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import estimate, plan_run, train
from cocomix.training.objectives import LossTerm, NextToken, add_heads, loss_terms
from cocomix.training.objectives.ncp import NextConceptPrediction
from tests.model.factories import HEADS, plain, student, tokens
from tests.training.test_resume import Killed, assert_same_run, kill_at, rows
from tests.workshop import BLOCK, Workshop

SIZE, CODES = 3, 5
ARM: dict[str, Any] = {"model": {"mixing": "next_concept", "chunk_tokens": SIZE}, "auxiliary": {"ncp": None}}


def built() -> PreTrainedModel:
    return student("gpt2", 1, "next_concept", chunk_tokens=SIZE, chunk_codes=CODES)


def measured(model: PreTrainedModel, **batch: Tensor) -> dict[str, LossTerm]:
    objective = NextConceptPrediction()
    add_heads([objective], model, torch.device("cpu"))
    terms, _ = loss_terms([NextToken(model.config), objective], model, batch)
    counts = objective.counts(batch)
    assert {name: terms[name].count for name in counts} == counts
    return terms


def test_the_terms_by_hand() -> None:
    """Eleven tokens are three chunks, two of which are predicted."""
    model, ids = built(), tokens()
    terms, shown = measured(model, input_ids=ids, labels=ids), model(ids, labels=ids).shown
    ends = [2, 5, 8]
    torch.testing.assert_close(terms["codebook_loss"].sum, shown["codebook"][:, ends].sum())
    torch.testing.assert_close(terms["ncp_loss"].sum, shown["ncp"][:, ends[1:]].sum())
    assert (terms["codebook_loss"].count, terms["ncp_loss"].count) == (2 * 3, 2 * 2)
    perplexities, shares = [], []
    for segment in shown["codes"][:, ends].unbind(-1):
        used = torch.bincount(segment.flatten(), minlength=CODES) / 6
        perplexities.append(math.exp(-sum(share * math.log(share) for share in used.tolist() if share)))
        shares.append(int((used > 0).sum()) / CODES)
    assert float(terms["code_perplexity"].sum) == pytest.approx(sum(perplexities) / HEADS, rel=1e-5)
    assert float(terms["code_use"].sum) == pytest.approx(sum(shares) / HEADS)
    assert terms["code_use"].weight is terms["code_perplexity"].weight is None


def test_a_block_of_two_documents_is_as_each_alone_and_padding_is_none() -> None:
    model, (row,) = built(), tokens(1, 15)
    labels = row.clone()
    labels[7] = IGNORE
    positions = torch.cat((torch.arange(7), torch.arange(8)))
    together = measured(model, input_ids=row[None], labels=labels[None], position_ids=positions[None])
    alone = [measured(model, input_ids=part[None], labels=part[None]) for part in (row[:7], row[7:])]
    ids, targets = F.pad(row[None, 7:], (0, 4)), F.pad(row[None, 7:], (0, 4), value=IGNORE)
    padded = measured(model, input_ids=ids, labels=targets, attention_mask=(targets != IGNORE).long())
    filled = measured(model, input_ids=ids.repeat(2, 1), labels=torch.cat((targets, torch.full_like(targets, IGNORE))))
    for name in ("ncp_loss", "codebook_loss"):
        torch.testing.assert_close(together[name].sum, alone[0][name].sum + alone[1][name].sum, rtol=1e-4, atol=1e-5)
        assert together[name].count == alone[0][name].count + alone[1][name].count
        for found in (padded, filled):
            torch.testing.assert_close(found[name].sum, alone[1][name].sum, rtol=1e-4, atol=1e-5)
            assert found[name].count == alone[1][name].count
    nothing = measured(model, input_ids=row[None, :2], labels=row[None, :2])  # not one whole chunk
    assert nothing["ncp_loss"].sum == nothing["ncp_loss"].count == nothing["code_use"].sum == 0


@pytest.mark.parametrize("document_masks", [False, True])
def test_it_trains_two_steps_and_logs_its_codes(document_masks: bool, workshop: Workshop, tmp_path: Path) -> None:
    changes = ARM | {"tokens": 2 * 8 * BLOCK, "training": {"logging_steps": 1}, "document_masks": document_masks}
    run = train(workshop.recipe("cocomix", labels=None, **changes), tmp_path / "run")
    manifest, (first, second) = read_json(run / "manifest.json"), [row for row in rows(run) if "loss" in row]
    assert manifest["arm"] == "next concept, 3 tokens a chunk, ncp"
    for row in (first, second):
        assert row["loss"] == pytest.approx(row["ntp_loss"] + row["ncp_loss"] + row["codebook_loss"], rel=1e-4)
        assert 0 < row["code_use"] <= 1 <= row["code_perplexity"] <= 64
    assert manifest["final"]["eval_code_perplexity"] >= 1
    width, codes = 16, 64
    assert manifest["extra_flops"]["ncp"]["per_token"] == pytest.approx(2 * width * codes / SIZE)
    planned = estimate(workshop.recipe("cocomix", labels=None, **changes), seconds=0)["training FLOPs"]
    assert planned == pytest.approx(Run.open(run).manifest.training_flops)
    blocks, heads, basis, norms = 12 * width**2 + 15 * width, (width + 1) * 2 * codes, width**2 // 2, 2 * width
    decoder = read_json(workshop.ntp_run / "manifest.json")["parameters"]["total"]
    assert manifest["parameters"]["total"] - decoder == blocks + heads + basis + norms
    loaded = Run.open(run).model()
    ids = tokens(1, 9)
    assert torch.equal(loaded.generate(ids, max_new_tokens=4), loaded.generate(ids, max_new_tokens=4, use_cache=False))


def test_a_killed_run_goes_on_to_the_same_weights(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    recipe = workshop.recipe("cocomix", labels=None, **ARM, tokens=4 * 8 * BLOCK, training=training)
    whole = train(recipe, tmp_path / "whole" / "run")
    with monkeypatch.context() as patched:
        kill_at(patched, 3)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed" / "run")
    assert_same_run(train(recipe, tmp_path / "killed" / "run"), whole)


def test_what_does_not_go_together_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    for model in (plain("gpt2"), student("gpt2", 1, "add")):
        with pytest.raises(CoCoMixError, match="next_concept"):
            add_heads([NextConceptPrediction()], model, torch.device("cpu"))
    with pytest.raises(ValidationError, match="baseline"):
        workshop.recipe("cocomix", labels=None, baseline="flops", **ARM)
    matched = workshop.recipe("ntp", baseline="flops", model={"mixing": "next_concept", "chunk_blocks": 8})
    data = Tokens.open(workshop.data)
    config = plan_run(matched, data).config
    assert config.model_type == "gpt2"
    assert config.hidden_size > plan_run(workshop.recipe("ntp"), data).config.hidden_size
