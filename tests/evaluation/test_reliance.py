from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cocomix.evaluation.inference import measure
from cocomix.evaluation.reliance import (
    Reliance,
    RunReliance,
    another_block,
    concept_reliance,
    no_reliance_reason,
    oracle,
    same_token,
    zero,
)
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import BLOCK, TOPK, VOCAB, Rows, cocomix_model, ntp_model, token_blocks

CPU = torch.device("cpu")
MIXED = ["interleave", "residual", "add"]


def measured(model, rows: Rows, labels: Rows | None = None, batch_size: int = 2, **changes) -> RunReliance:
    tokens = rows.rows.numpy()
    depth = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    documents = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    blocks = SimpleNamespace(rows=rows, labels=labels, ids=tokens, depth=depth, documents=documents)
    losses = measure(model, rows, batch_size=batch_size, device=CPU)[0]
    return concept_reliance(model, blocks, losses, batch_size=batch_size, device=CPU, **changes)


def loss_of(model, blocks: Rows) -> float:
    losses = measure(model, blocks, batch_size=2, device=CPU)[0]
    return float(np.nanmean(losses.astype(np.float64)))


# ---- where concepts are taken from ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1), (2, 7), (3, 5)])
def test_shuffle_takes_from_every_other_block_and_never_its_own(shape):
    blocks, seq = shape
    drawn = np.stack([another_block(shape, np.random.default_rng(seed)) for seed in range(200)])
    assert (drawn // seq != np.arange(blocks)[:, None]).all()
    assert set(drawn[:, 0, 0].tolist()) == set(range(seq, blocks * seq))
    np.testing.assert_array_equal(drawn[3], another_block(shape, np.random.default_rng(3)))


def test_same_token_takes_from_every_place_of_the_token_in_other_blocks():
    tokens = np.array([[5, 5, 7, 1], [5, 7, 5, 2], [3, 3, 5, 9]])
    flat = tokens.ravel()
    drawn = np.stack([same_token(tokens, np.random.default_rng(seed)) for seed in range(300)])
    assert (flat[drawn] == tokens).all()
    for (block, place), token in np.ndenumerate(tokens):
        allowed = {at for at in range(12) if flat[at] == token and at // 4 != block}
        assert set(drawn[:, block, place].tolist()) == (allowed or {block * 4 + place}), (block, place)


# ---- what is put in their place -------------------------------------------------------------------------------------


def test_oracle_by_hand():
    ids = torch.tensor([[[5, 3, 9, 1]]]).expand(1, 6, 4)
    labels = torch.tensor(
        [
            [
                [7, 8],  # none predicted: labels first, the strongest predictions follow
                [9, 5],  # both predicted: moved to the front in the labels' order
                [8, -100],  # one label
                [-100, -100],  # no label: untouched
                [-100, 3],  # the used entry counts wherever it stands
                [7, 7],  # named twice: once
            ]
        ]
    )
    expected = [[7, 8, 5, 3], [9, 5, 3, 1], [8, 5, 3, 9], [5, 3, 9, 1], [3, 5, 9, 1], [7, 5, 3, 9]]
    assert oracle(labels, ids).tolist() == [expected]


def test_oracle_takes_no_more_labels_than_there_are_places():
    assert oracle(torch.tensor([[[7, 8, 6]]]), torch.tensor([[[1, 2]]])).tolist() == [[[7, 8]]]


# ---- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXED)
def test_replacements_equal_models_that_are_so(mixing):
    model, blocks = cocomix_model(mixing), token_blocks(4)
    untouched = loss_of(model, blocks)
    found = measured(model, blocks)
    assert set(found.kinds) == {"mean", "shuffle", "shuffle_same_token", "zero"}
    assert all(each.low <= each.nats <= each.high for each in found.kinds.values())
    with torch.no_grad():
        output = model(input_ids=blocks.rows)
        mean = model.mixing.compression(output.concept_ids, output.concept_values).mean((0, 1))
        emptied = cocomix_model(mixing)
        emptied.mixing.compression.weight.zero_()  # zero values and zero weights leave the same bias
        assert found.kinds["zero"].nats == pytest.approx(loss_of(emptied, blocks) - untouched, rel=1e-4)
        emptied.mixing.compression.bias.copy_(mean)
        assert found.kinds["mean"].nats == pytest.approx(loss_of(emptied, blocks) - untouched, rel=1e-4)
    useless = measured(emptied, blocks)
    assert all(abs(each.nats) < 1e-6 for each in useless.kinds.values())


@pytest.mark.parametrize("mixing", MIXED)
def test_the_models_own_predictions_as_labels_change_nothing(mixing):
    model, blocks = cocomix_model(mixing), token_blocks(4)
    with torch.no_grad():
        predicted = model(input_ids=blocks.rows).concept_ids[..., :3]
    given = {"labels": Rows("concept_labels", predicted), "label_kind": "activation"}
    assert measured(model, blocks, **given).kinds["oracle"] == Reliance(nats=0.0, low=0.0, high=0.0)


@pytest.mark.parametrize("kind", ["attribution", "future_words"])
def test_labels_that_know_the_next_token_make_no_oracle(kind):
    model, blocks = cocomix_model(), token_blocks(4)
    labels = Rows("concept_labels", torch.zeros(4, BLOCK, 1, dtype=torch.long))
    found = measured(model, blocks, labels=labels, label_kind=kind)
    assert "oracle" not in found.kinds
    assert kind in found.note


def test_a_model_whose_concepts_follow_from_the_token_loses_nothing_to_the_same_token():
    """With no blocks below the concepts and no positions, they are a table of the current token."""
    model = cocomix_model(insert_layer=0)
    with torch.no_grad():
        model.lower.wpe.weight.zero_()
        blocks = Rows("input_ids", token_blocks(1).rows.repeat(4, 1))
        concepts = model(input_ids=torch.arange(VOCAB)[:, None]).concept_ids[:, 0]
    found = measured(model, blocks, table=concepts.numpy())
    assert found.kinds["shuffle_same_token"].nats == pytest.approx(0.0, abs=1e-6)
    assert abs(found.kinds["shuffle"].nats) > 1e-3
    assert abs(found.kinds["token_table"].nats) < abs(found.kinds["zero"].nats)
    assert concepts.shape == (VOCAB, TOPK)


@pytest.mark.parametrize("mixing", MIXED)
def test_the_size_is_of_the_vector_in_standard_deviations_of_the_hidden_state(mixing):
    model, blocks = cocomix_model(mixing), token_blocks(4)
    with torch.no_grad():
        model.predictor.pre_bias.zero_()
        entering = model.lower(input_ids=blocks.rows).last_hidden_state
        mixed = model.mixing(entering, model.predictor(entering).concepts)
        vector = mixed - entering if mixing == "add" else mixed[:, 1::2]
        vector = vector - entering if mixing == "residual" else vector
        mean = 0.0 if mixing == "residual" else entering.mean(-1, keepdim=True)
        sizes = ((vector - mean) / entering.std(-1, keepdim=True)).square().mean(-1).sqrt()
    assert measured(model, blocks).size == pytest.approx(float(sizes.mean()), rel=1e-3)


def test_the_batch_changes_nothing_and_the_seed_the_shuffles_alone():
    model, blocks = cocomix_model(), token_blocks(5)
    one, two = measured(model, blocks), measured(model, blocks, batch_size=5)
    for kind, each in one.kinds.items():
        assert two.kinds[kind].nats == pytest.approx(each.nats, rel=1e-4, abs=1e-6)
    other = measured(model, blocks, seed=1)
    assert other.kinds["shuffle"].nats != one.kinds["shuffle"].nats
    assert other.kinds["mean"].nats == one.kinds["mean"].nats
    assert one.documents == 5


def test_only_so_many_positions_are_kept(monkeypatch):
    monkeypatch.setattr("cocomix.evaluation.reliance.MOST_POSITIONS", 3 * BLOCK)
    found = measured(cocomix_model(), token_blocks(5))
    assert found.documents == 3
    assert "first 3 blocks" in found.note


def test_shares_of_a_gain():
    found = RunReliance(kinds={"mean": Reliance(nats=0.1, low=0.0, high=0.2)}, documents=3)
    assert found.of_gain(0.4).kinds["mean"].share_of_gain == pytest.approx(0.25)
    assert found.of_gain(-0.4).kinds["mean"].share_of_gain is None


def test_refusals():
    assert no_reliance_reason(cocomix_model()) is None
    with pytest.raises(CoCoMixError, match="GPT2"):
        measured(ntp_model(), token_blocks(4))
    with pytest.raises(CoCoMixError, match="none"):
        measured(cocomix_model("none"), token_blocks(4))
    with pytest.raises(CoCoMixError, match="at least two"):
        measured(cocomix_model(), token_blocks(1))


def test_zero_keeps_concepts():
    ids, values = torch.tensor([[[1, 2]]]), torch.tensor([[[0.5, 0.25]]])
    new_ids, new_values = zero(ids, values)
    assert new_ids is ids
    assert new_values.eq(0).all()
