"""Zero, shuffle and oracle for fed-back concepts, against models that are so; and through `eval` and `analyse`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.evaluation import RunEvaluation
from cocomix.evaluation.analyses import Analyses
from cocomix.evaluation.inference import measure
from cocomix.evaluation.reliance import RunReliance, concept_reliance, no_reliance_reason
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.command_line import Cli
from tests.evaluation.conftest import Rows, cocomix_model, token_blocks
from tests.workshop import BLOCK, Workshop

CPU, SIZE = torch.device("cpu"), 3
KINDS = {"mean", "shuffle", "shuffle_same_token", "oracle_ahead", "zero"}


def model_of(**changes: Any) -> CoCoMixForCausalLM:
    model = cocomix_model("next_concept", chunk_tokens=SIZE, chunk_codes=4, **changes)
    with torch.no_grad():
        model.mixing.heads.weight.mul_(10)
    return model


def losses_of(model: CoCoMixForCausalLM, rows: Rows) -> np.ndarray:
    return measure(model, rows, batch_size=2, device=CPU)[0]


def measured(model: CoCoMixForCausalLM, rows: Rows, batch_size: int = 2, **changes: Any) -> RunReliance:
    tokens = rows.rows.numpy()
    depth = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    documents = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    blocks = SimpleNamespace(rows=rows, labels=None, ids=tokens, depth=depth, documents=documents)
    return concept_reliance(model, blocks, losses_of(model, rows), batch_size=batch_size, device=CPU, **changes)


def rise(model: CoCoMixForCausalLM, rows: Rows, vectors: torch.Tensor) -> float:
    """Of the loss with these vectors fed back, by another way: a module that returns them in the predictions' place."""
    untouched = losses_of(model, rows)
    norm, model.mixing.concept_norm = model.mixing.concept_norm, torch.nn.Identity()
    model.mixing.concept_norm.forward = lambda _: norm(vectors)  # type: ignore[method-assign]
    found = measure(model, rows, batch_size=len(rows), device=CPU)[0]
    model.mixing.concept_norm = norm
    return float(np.nanmean(found - untouched))


def test_replacements_equal_models_that_are_so() -> None:
    """With three chunks and a token in a block: the oracle of the last, which has no whole chunk, is its own vector."""
    model, rows = model_of(), token_blocks(4)
    found = measured(model, rows)
    assert set(found.kinds) == KINDS
    assert "look ahead" in (found.note or "")
    with torch.no_grad():
        shown = model(rows.rows, labels=rows.rows).shown
        hidden = model.lower(rows.rows).last_hidden_state
    own, seq = shown["feedback"], rows.rows.shape[1]
    assert own[:, : SIZE - 1].eq(0).all()
    assert found.kinds["zero"].nats == pytest.approx(rise(model, rows, torch.zeros_like(own)), rel=1e-4)
    mean = own[:, SIZE - 1 :].mean((0, 1)).expand_as(own).clone()
    mean[:, : SIZE - 1] = 0
    assert found.kinds["mean"].nats == pytest.approx(rise(model, rows, mean), rel=1e-4)
    ahead = own.clone()
    for p in range(SIZE - 1, seq):
        chunk = slice((p + 1) // SIZE * SIZE, (p + 1) // SIZE * SIZE + SIZE)
        if chunk.stop <= seq:
            ahead[:, p] = hidden[:, chunk].mean(1)
    assert not torch.equal(ahead, own)
    assert found.kinds["oracle_ahead"].nats == pytest.approx(rise(model, rows, ahead), rel=1e-4)
    assert abs(found.kinds["shuffle"].nats) > 1e-4
    two = measured(model, rows, batch_size=4)
    for kind, each in found.kinds.items():
        assert two.kinds[kind].nats == pytest.approx(each.nats, rel=1e-3, abs=1e-6)
    assert measured(model, rows, seed=1).kinds["shuffle"].nats != found.kinds["shuffle"].nats


def test_a_feedback_that_says_nothing_costs_nothing_to_shuffle() -> None:
    """The known failure of replicas: every chunk is predicted alike, whatever the codebook is used for."""
    model = model_of()
    with torch.no_grad():
        model.mixing.heads.weight.zero_()
        model.mixing.heads.bias.copy_(torch.arange(len(model.mixing.heads.bias)) / 10)
    found = measured(model, token_blocks(4))
    for kind in ("mean", "shuffle", "shuffle_same_token"):
        assert abs(found.kinds[kind].nats) < 1e-6, kind
    assert abs(found.kinds["zero"].nats) > 1e-4


def test_limits_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(), token_blocks(5)
    assert no_reliance_reason(model) is None
    with pytest.raises(CoCoMixError, match="at least two"):
        measured(model, token_blocks(1))
    monkeypatch.setattr("cocomix.evaluation.reliance.MOST_VALUES", 3 * rows.rows.shape[1] * 16)
    found = measured(model, rows)
    assert found.documents == 3
    assert "first 3 blocks" in (found.note or "")


def test_eval_and_analyse_measure_it(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    arm = {"model": {"mixing": "next_concept"}, "auxiliary": {"ncp": None}, "document_masks": True}
    run = train(workshop.recipe("cocomix", labels=None, **arm, tokens=2 * 8 * BLOCK), tmp_path / "run")
    values = RunEvaluation.model_validate_json(cli("eval", run, "--json").out)
    assert values.reliance is not None
    assert set(values.reliance.kinds) == KINDS
    assert "look ahead" in " ".join(cli("eval", run).out.split())
    page = Analyses.model_validate_json(cli("analyse", run, "-o", tmp_path / "page", "--json").out)
    assert set(page.runs[0].reliance.kinds) == KINDS
    assert page.gradients == ((),)
