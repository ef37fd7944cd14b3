import pytest
import torch

from cocomix.evaluation.perplexity import evaluate
from cocomix.evaluation.reliance import concept_reliance, no_reliance_reason, oracle, shuffle, zero
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import BLOCK, Rows, cocomix_model, ntp_model, token_blocks

CPU = torch.device("cpu")
MIXED = ["interleave", "residual", "add"]


def coded(batch: int, seq: int, k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that tell where they come from: 1000 · sequence + 10 · position + rank, and values that match."""
    ids = 1000 * torch.arange(batch)[:, None, None] + 10 * torch.arange(seq)[:, None] + torch.arange(k)
    return ids, ids.float() / 7


@pytest.mark.parametrize(("batch", "seq"), [(2, 1), (2, 7), (3, 5), (8, 16)])
def test_shuffle_is_a_permutation_that_never_takes_from_its_own_sequence(batch, seq):
    ids, values = coded(batch, seq)
    new_ids, new_values = shuffle(torch.Generator().manual_seed(3))(ids, values)
    assert (new_ids // 1000 != torch.arange(batch)[:, None, None]).all()
    assert torch.equal(new_values, new_ids.float() / 7), "values travel with their concepts"
    assert sorted(new_ids[..., 0].flatten().tolist()) == sorted(ids[..., 0].flatten().tolist())
    again, _ = shuffle(torch.Generator().manual_seed(3))(ids, values)
    assert torch.equal(new_ids, again)


def test_shuffle_mixes_positions_and_sequences():
    ids, values = coded(4, 32)
    new_ids, _ = shuffle(torch.Generator().manual_seed(0))(ids, values)
    moved = (new_ids[..., 0] % 1000) // 10 != torch.arange(32)
    assert moved.float().mean() > 0.8
    assert all(len(set((new_ids[row, :, 0] // 1000).tolist())) == 3 for row in range(4))


def test_shuffle_refuses_a_single_sequence():
    with pytest.raises(CoCoMixError, match="two sequences"):
        shuffle(torch.Generator())(*coded(1, 4))


def test_oracle_by_hand():
    ids = torch.tensor([[[5, 3, 9, 1]]]).expand(1, 6, 4)
    values = torch.tensor([[[4.0, 3.0, 2.0, -1.0]]]).expand(1, 6, 4)
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
    new_ids, new_values = oracle(labels)(ids, values)
    expected = [[7, 8, 5, 3], [9, 5, 3, 1], [8, 5, 3, 9], [5, 3, 9, 1], [3, 5, 9, 1], [7, 5, 3, 9]]
    assert new_ids.tolist() == [expected]
    assert torch.equal(new_values, values)


def test_oracle_takes_no_more_labels_than_there_are_places():
    new_ids, _ = oracle(torch.tensor([[[7, 8, 6]]]))(torch.tensor([[[1, 2]]]), torch.zeros(1, 1, 2))
    assert new_ids.tolist() == [[[7, 8]]]


@pytest.mark.parametrize("mixing", MIXED)
def test_oracle_with_the_models_own_predictions_changes_nothing(mixing):
    model, blocks = cocomix_model(mixing), token_blocks(4)
    with torch.no_grad():
        predicted = model(input_ids=blocks.rows).concept_ids[..., :3]
    measured = concept_reliance(model, blocks, labels=Rows("concept_labels", predicted), batch_size=2, device=CPU)
    assert measured.oracle == measured.loss
    assert measured.deltas()["oracle"] == 0.0


@pytest.mark.parametrize("mixing", MIXED)
def test_untouched_and_zero_equal_models_that_are_so(mixing):
    model, blocks = cocomix_model(mixing), token_blocks(4)
    measured = concept_reliance(model, blocks, batch_size=4, device=CPU)
    untouched = evaluate(model, blocks, batch_size=4, device=CPU, bytes_per_token=None)
    assert measured.loss == pytest.approx(untouched.loss, rel=1e-6)
    assert measured.shuffle != measured.loss
    torch.nn.init.zeros_(model.mixing.compression.weight)  # zero values and zero weights leave the same bias
    emptied = evaluate(model, blocks, batch_size=4, device=CPU, bytes_per_token=None)
    assert measured.zero == pytest.approx(emptied.loss, rel=1e-6)
    assert measured.zero != measured.loss
    useless = concept_reliance(model, blocks, batch_size=4, device=CPU)
    assert all(abs(delta) < 1e-6 for delta in useless.deltas().values())


def test_zero_keeps_concepts():
    ids, values = coded(2, 3)
    new_ids, new_values = zero(ids, values)
    assert new_ids is ids
    assert new_values.eq(0).all()


def test_a_block_without_partner_is_left_out_of_all_losses():
    model = cocomix_model()
    five = token_blocks(5)
    measured = concept_reliance(model, five, batch_size=2, device=CPU)
    assert measured.blocks == 4
    same = concept_reliance(model, Rows("input_ids", five.rows[:4]), batch_size=2, device=CPU)
    assert measured == same
    assert concept_reliance(model, five, batch_size=5, device=CPU).blocks == 5


def test_seed_decides_the_shuffle_alone():
    model, blocks = cocomix_model(), token_blocks(4)
    one = concept_reliance(model, blocks, batch_size=4, device=CPU, seed=1)
    two = concept_reliance(model, blocks, batch_size=4, device=CPU, seed=2)
    assert one.shuffle != two.shuffle
    assert (one.loss, one.zero) == (two.loss, two.zero)
    assert one.oracle is None
    assert set(one.to_json()) == {"loss", "zero", "shuffle", "blocks", "seed", "deltas"}


def test_refusals():
    blocks = token_blocks(4)
    assert no_reliance_reason(cocomix_model()) is None
    with pytest.raises(CoCoMixError, match="has no concepts"):
        concept_reliance(ntp_model(), blocks, batch_size=2, device=CPU)
    with pytest.raises(CoCoMixError, match="intervene"):
        concept_reliance(cocomix_model("none"), blocks, batch_size=2, device=CPU)
    for count, batch_size in ((4, 1), (1, 4)):
        with pytest.raises(CoCoMixError, match="two blocks"):
            concept_reliance(cocomix_model(), token_blocks(count, BLOCK), batch_size=batch_size, device=CPU)
