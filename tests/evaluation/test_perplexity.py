import math

import pytest
import torch
from torch.nn import functional as F

from cocomix.evaluation.perplexity import bits_per_byte, evaluate
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import BLOCK, CONCEPTS, TOPK, Rows, cocomix_model, ntp_model, token_blocks

CPU = torch.device("cpu")


def naive_loss(model, blocks) -> float:
    ids = torch.stack([blocks[index]["input_ids"] for index in range(len(blocks))])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.double()
    picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])
    return float(-picked.mean())


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
    result = evaluate(model, blocks, batch_size=batch_size, device=CPU, bytes_per_token=None)
    assert result.loss == pytest.approx(naive_loss(model, blocks), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.blocks, result.targets, result.dtype) == (5, 5 * (BLOCK - 1), "float32")
    assert result.bits_per_byte is None
    assert "concept_recall" not in result.to_json()


def test_uniform_model_costs_log_vocab():
    model = ntp_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    result = evaluate(model, token_blocks(), batch_size=2, device=CPU, bytes_per_token=4.0)
    assert result.loss == pytest.approx(math.log(31))
    assert result.perplexity == pytest.approx(31)
    assert result.bits_per_byte == pytest.approx(math.log2(31) / 4)


def test_bits_per_byte_by_hand():
    assert bits_per_byte(math.log(2), 1.0) == pytest.approx(1.0)
    assert bits_per_byte(3 * math.log(2), 4.0) == pytest.approx(0.75)
    with pytest.raises(CoCoMixError, match="bytes_per_token=0"):
        bits_per_byte(1.0, 0.0)


def test_limit_blocks_uses_the_first_blocks():
    model, blocks = ntp_model(), token_blocks()
    result = evaluate(model, blocks, batch_size=2, device=CPU, bytes_per_token=None, limit_blocks=3)
    assert result.blocks == 3
    assert result.loss == pytest.approx(naive_loss(model, Rows("input_ids", blocks.rows[:3])), rel=1e-5)


def test_concept_loss_and_recall_equal_a_naive_computation():
    model, blocks, labels = cocomix_model(), token_blocks(), random_labels(5)
    result = evaluate(model, blocks, labels=labels, batch_size=2, device=CPU, bytes_per_token=None)
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
    assert result.labelled_positions == positions == 5 * (BLOCK - 1)
    assert result.concept_loss == pytest.approx(loss / positions, rel=1e-5)
    assert result.concept_recall == pytest.approx(hits / used)
    assert result.concept_recall_at_labels == pytest.approx(hits_at_labels / used)


def test_recall_is_one_for_the_models_own_predictions():
    model, blocks = cocomix_model(), token_blocks()
    with torch.no_grad():
        predicted = model(input_ids=blocks.rows).concept_ids[..., :4]
    result = evaluate(
        model, blocks, labels=Rows("concept_labels", predicted), batch_size=3, device=CPU, bytes_per_token=None
    )
    assert result.concept_recall == result.concept_recall_at_labels == 1.0


def test_evaluation_leaves_training_mode_and_switches_dropout_off():
    model = ntp_model()
    model.config.resid_pdrop = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    first = evaluate(model, token_blocks(), batch_size=2, device=CPU, bytes_per_token=None)
    assert model.training
    assert first.loss == evaluate(model, token_blocks(), batch_size=2, device=CPU, bytes_per_token=None).loss


def test_bfloat16_is_used_only_when_asked_for():
    model, blocks = ntp_model(), token_blocks()
    exact = evaluate(model, blocks, batch_size=2, device=CPU, bytes_per_token=None)
    narrow = evaluate(model, blocks, batch_size=2, device=CPU, bytes_per_token=None, dtype=torch.bfloat16)
    assert narrow.dtype == "bfloat16"
    assert narrow.loss != exact.loss
    assert narrow.loss == pytest.approx(exact.loss, rel=0.02)
    with pytest.raises(CoCoMixError, match="weights are bfloat16"):
        evaluate(model.bfloat16(), blocks, batch_size=2, device=CPU, bytes_per_token=None)


def test_refusals_say_what_to_do():
    model, blocks = cocomix_model(), token_blocks()

    def run(model=model, blocks=blocks, **changes):
        evaluate(model, blocks, **{"batch_size": 2, "device": CPU, "bytes_per_token": None, **changes})

    with pytest.raises(CoCoMixError, match="predicts no concepts"):
        run(ntp_model(), labels=random_labels(5))
    with pytest.raises(CoCoMixError, match=r"4 blocks.* 5"):
        run(labels=random_labels(4))
    with pytest.raises(CoCoMixError, match=f"names concept {CONCEPTS} but the model has concepts 0 to {CONCEPTS - 1}"):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), CONCEPTS)))
    with pytest.raises(CoCoMixError, match="negative but not -100"):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), -1)))
    with pytest.raises(CoCoMixError, match="has a labelled position"):
        run(labels=Rows("concept_labels", torch.full((5, BLOCK, 2), -100)))
    with pytest.raises(CoCoMixError, match=r"20.* 16"):
        run(blocks=token_blocks(2, 20))
    with pytest.raises(CoCoMixError, match="holds token 31"):
        run(blocks=Rows("input_ids", torch.full((2, BLOCK), 31)))
    with pytest.raises(CoCoMixError, match="no block"):
        run(blocks=Rows("input_ids", torch.zeros(0, BLOCK, dtype=torch.long)))
    with pytest.raises(CoCoMixError, match="nothing to predict"):
        run(blocks=token_blocks(2, 1))
    with pytest.raises(CoCoMixError, match="batch_size=0"):
        run(batch_size=0)
    with pytest.raises(CoCoMixError, match="limit_blocks=0"):
        run(limit_blocks=0)
    torch.nn.init.constant_(model.lower.wte.weight, float("nan"))
    with pytest.raises(CoCoMixError, match="not a finite number"):
        run()
