"""A head that something else stands in for, as PEFT and torchao do: the same losses, top-k and gradients."""

import pytest
import torch
from torch import Tensor, nn

from cocomix.model import CoCoMixForCausalLM, FullTargets
from cocomix.model.fused_head import Head, head_output
from cocomix.model.targets import Divergence, HeadLoss, SetCrossEntropy
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from tests.model.factories import concepts, student, tokens

N, WIDTH, LOGITS, K = 13, 6, 20, 3


class Adapted(nn.Module):
    """As PEFT's LoRA layer: the base layer's output and a low-rank one, by `forward` alone."""

    def __init__(self, base: Head, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.out_features = base.out_features
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.base_layer(hidden)
        return logits + hidden @ self.down.T @ self.up.T


class Quantised(Tensor):
    """As torchao's weights: a tensor of another class."""


def losses() -> dict[str, HeadLoss | None]:
    labels = torch.randint(LOGITS, (N, 2))
    labels[::3], labels[1, 1] = IGNORE, IGNORE
    return {
        "none": None,
        "labels": SetCrossEntropy(labels),
        "divergence": Divergence(FullTargets(torch.randn(N, LOGITS)), torch.arange(N) % 3 > 0),
    }


@pytest.mark.parametrize("kind", ["none", "labels", "divergence"])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_a_module_in_its_place_gives_the_same(kind: str, softcap: float | None, bias: bool) -> None:
    torch.manual_seed(0)
    head = Head(WIDTH, LOGITS, bias=bias, chunk_size=4, softcap=softcap)
    loss, hidden = losses()[kind], torch.randn(N, WIDTH, requires_grad=True)
    results = []
    quantised = Head(WIDTH, LOGITS, bias=bias, chunk_size=4, softcap=softcap)
    quantised.load_state_dict(head.state_dict())
    quantised.weight = nn.Parameter(quantised.weight.detach().as_subclass(Quantised))
    for module in (head, Adapted(head), quantised):
        output = head_output(module, hidden, loss, K)
        total = output.values.square().sum() + output.loss_sum
        results.append([output.ids, output.values, output.loss_sum])
        own = quantised if module is quantised else head
        results[-1] += [each.as_subclass(Tensor) for each in torch.autograd.grad(total, [hidden, *own.parameters()])]
    for fused, adapted, other in zip(*results, strict=True):
        torch.testing.assert_close(fused, adapted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused, other.as_subclass(Tensor), rtol=1e-5, atol=1e-5)


def test_adapters_on_both_heads_learn() -> None:
    model: CoCoMixForCausalLM = student("gpt2")
    batch = {"labels": tokens(), "concept_labels": concepts(), "output_logits": False}
    expected = model(tokens(), **batch)
    model.predictor.head, model.lm_head = Adapted(model.predictor.head), Adapted(model.lm_head)
    found = model(tokens(), **batch)
    torch.testing.assert_close(found.loss, expected.loss)
    found.loss.backward()
    assert model.predictor.head.up.grad.any()
    assert model.lm_head.up.grad.any()


def test_a_resized_vocabulary_keeps_the_fused_head() -> None:
    model = student("gpt2")
    model.resize_token_embeddings(model.config.vocab_size + 3)
    assert type(model.lm_head) is Head
    assert model(tokens(), labels=tokens()).logits.shape[-1] == model.config.vocab_size
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_layer_that_is_no_head_is_refused() -> None:
    model = student("gpt2")
    model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    with pytest.raises(CoCoMixError, match="Linear"):
        model(tokens(), labels=tokens(), output_logits=False)
    model.set_output_embeddings(model.lm_head)
    assert model(tokens(), labels=tokens(), output_logits=False).loss.isfinite()
