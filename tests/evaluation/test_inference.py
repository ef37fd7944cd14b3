import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cocomix.evaluation.inference import measure
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import BLOCK, CONCEPTS, TOPK, Rows, cocomix_model, ntp_model, token_blocks

CPU = torch.device("cpu")


def naive_loss(model, blocks) -> float:
    ids = torch.stack([blocks[index]["input_ids"] for index in range(len(blocks))])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.double()
    picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])
    return float(-picked.mean())


def loss_of(result) -> float:
    return float(np.nanmean(result[0].astype(np.float64)))


def random_labels(count: int, k: int = 3) -> Rows:
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(count, BLOCK, CONCEPTS, generator=generator).argsort(-1)[..., :k].clone()
    rows[:, -1] = -100
    rows[0, 2, 1:] = -100
    return Rows("concept_labels", rows)


@pytest.mark.parametrize(
    "make", [ntp_model, cocomix_model, lambda: cocomix_model("none"), lambda: cocomix_model("add")]
)
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_loss_is_the_mean_over_all_next_tokens_whatever_the_batch(make, batch_size):
    model, blocks = make(), token_blocks()
    result = measure(model, blocks, batch_size=batch_size, device=CPU)
    assert loss_of(result) == pytest.approx(naive_loss(model, blocks), rel=1e-5)
    assert result[0].shape == (5, BLOCK)
    assert np.isnan(result[0][:, 0]).all()
    assert not np.isnan(result[0][:, 1:]).any()


def test_uniform_model_costs_log_vocab():
    model = ntp_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    result = measure(model, token_blocks(), batch_size=2, device=CPU)
    assert loss_of(result) == pytest.approx(math.log(31))


def test_concept_loss_and_recall_equal_a_naive_computation():
    model, blocks, labels = cocomix_model(), token_blocks(), random_labels(5)
    result = measure(model, blocks, labels=labels, batch_size=2, device=CPU)
    with torch.no_grad():
        output = model(input_ids=blocks.rows, output_concept_logits=True)
    loss, positions, used, hits, hits_at_labels = 0.0, 0, 0, 0, 0
    for block in range(5):
        for position in range(BLOCK):
            wanted = [int(label) for label in labels.rows[block, position] if label != -100]
            if not wanted:
                continue
            logits = output.concept_logits[block, position]
            predicted = [int(concept) for concept in logits.topk(TOPK).indices]
            positions += 1
            used += len(wanted)
            loss += sum(float(F.cross_entropy(logits, torch.tensor(label))) for label in wanted) / len(wanted)
            hits += sum(label in predicted for label in wanted)
            hits_at_labels += sum(label in predicted[:3] for label in wanted)
    counts = result[1]
    assert counts.positions == positions == 5 * (BLOCK - 1)
    assert counts.loss == pytest.approx(loss, rel=1e-5)
    assert [int(each.sum()) for each in (counts.labels, counts.found, counts.found_at_labels)] == [
        used,
        hits,
        hits_at_labels,
    ]
    assert counts.predicted.sum() == 5 * BLOCK * TOPK


def test_recall_is_one_for_the_models_own_predictions():
    model, blocks = cocomix_model(), token_blocks()
    with torch.no_grad():
        predicted = model(input_ids=blocks.rows).concept_ids[..., :4]
    result = measure(model, blocks, labels=Rows("concept_labels", predicted), batch_size=3, device=CPU)
    counts = result[1]
    assert counts.labels.sum() > 0
    np.testing.assert_array_equal(counts.found, counts.labels)
    np.testing.assert_array_equal(counts.found_at_labels, counts.labels)


def test_evaluation_leaves_training_mode_and_switches_dropout_off():
    model = ntp_model()
    model.config.resid_pdrop = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    first = measure(model, token_blocks(), batch_size=2, device=CPU)
    assert model.training
    np.testing.assert_array_equal(first[0], measure(model, token_blocks(), batch_size=2, device=CPU)[0])


def test_bfloat16_is_used_only_when_asked_for():
    model, blocks = ntp_model(), token_blocks()
    exact = measure(model, blocks, batch_size=2, device=CPU)
    narrow = measure(model, blocks, batch_size=2, device=CPU, dtype=torch.bfloat16)
    assert loss_of(narrow) != loss_of(exact)
    assert loss_of(narrow) == pytest.approx(loss_of(exact), rel=0.02)
    with pytest.raises(CoCoMixError, match="weights are bfloat16"):
        measure(model.bfloat16(), blocks, batch_size=2, device=CPU)


def test_refusals_say_what_to_do():
    model, blocks = cocomix_model(), token_blocks()

    def run(model=model, blocks=blocks, **changes):
        measure(model, blocks, **{"batch_size": 2, "device": CPU, **changes})

    with pytest.raises(CoCoMixError, match="predicts no concepts"):
        run(ntp_model(), labels=random_labels(5))
    with pytest.raises(CoCoMixError, match=r"4 blocks.* 5"):
        run(labels=random_labels(4))
    with pytest.raises(CoCoMixError, match=f"names concept {CONCEPTS} but the model has concepts 0 to {CONCEPTS - 1}"):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), CONCEPTS)))
    with pytest.raises(CoCoMixError, match="names concept -1 "):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), -1)))
    with pytest.raises(CoCoMixError, match="has a labelled position"):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), -100)))
    with pytest.raises(CoCoMixError, match=r"20.* 16"):
        run(blocks=token_blocks(2, 20))
    with pytest.raises(CoCoMixError, match="holds token 31"):
        run(blocks=Rows("input_ids", torch.full((2, BLOCK), 31)))
    with pytest.raises(CoCoMixError, match="no block"):
        run(blocks=Rows("input_ids", torch.zeros(0, BLOCK, dtype=torch.long)))
    with pytest.raises(CoCoMixError, match="blocks have 1 tokens"):
        run(blocks=token_blocks(2, 1))
    with pytest.raises(CoCoMixError, match="batch_size=0"):
        run(batch_size=0)
    torch.nn.init.constant_(model.lower.wte.weight, float("nan"))
    with pytest.raises(CoCoMixError, match="not a finite number"):
        run()
