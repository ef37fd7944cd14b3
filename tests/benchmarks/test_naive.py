"""The naive twin computes what ours computes; otherwise no ratio against it would mean anything."""

import copy

import pytest
import torch
from benchmarks.naive import naive_compression, naive_labels, naive_loss

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.modeling.mixer import ConceptCompression
from tests.modeling.factories import concepts, plain, student, tokens


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("insert_layer", [0, 1])
def test_loss_and_all_gradients(family: str, insert_layer: int) -> None:
    ours = student(family, insert_layer)
    twin = copy.deepcopy(ours)
    input_ids, labels = tokens(), concepts()
    expected = ours(input_ids, labels=input_ids, concept_labels=labels).loss
    actual = naive_loss(twin, input_ids, labels)
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_positions_without_labels_do_not_count() -> None:
    model = student("gpt2")
    input_ids, labels = tokens(), concepts()
    labels[:, ::2] = -100
    expected = model(input_ids, labels=input_ids, concept_labels=labels).loss
    torch.testing.assert_close(naive_loss(model, input_ids, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
def test_label_ids(layer: int) -> None:
    teacher = plain("gpt2")
    generator = torch.Generator().manual_seed(5)
    d_model, n_concepts = teacher.config.hidden_size, 48

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    dictionary = ConceptDictionary.from_tensors(
        draw(d_model, n_concepts),
        draw(n_concepts),
        draw(n_concepts, d_model),
        draw(d_model),
        k=9,
        normalize="layer_norm",
    )
    input_ids = tokens(batch=3)
    actual = naive_labels(copy.deepcopy(teacher).requires_grad_(True), dictionary, layer, input_ids)
    expected = ConceptTeacher(teacher, dictionary, layer).label(input_ids).ids
    assert torch.equal(actual, expected)
    assert (actual[:, :-1] != -100).float().mean() > 0.5


def test_dense_compression_equals_the_sparse_one() -> None:
    compression = ConceptCompression(40, 8)
    torch.nn.init.normal_(compression.weight)
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    values, ids = logits.topk(6, dim=-1)
    torch.testing.assert_close(naive_compression(logits, compression.weight, 6), compression(ids, values))
