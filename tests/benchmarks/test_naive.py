"""The naive twin computes what ours computes; otherwise no ratio against it would mean anything."""

import copy

import pytest
import torch
from benchmarks.naive import NaiveStudent, naive_compression, naive_labels
from torch import nn

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.model.accounting import count_parameters
from cocomix.model.mixing.form import ConceptCompression
from tests.model.factories import concepts, plain, student, tokens


@pytest.mark.parametrize("insert_layer", [0, 1, 2])
def test_loss_and_all_gradients(insert_layer: int) -> None:
    ours = student("gpt2", insert_layer)
    twin = NaiveStudent(ours)
    input_ids, labels = tokens(), concepts()
    expected = ours(input_ids, labels=input_ids, concept_labels=labels).loss
    actual = twin(input_ids, labels)
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    parts: list[tuple[nn.Module, nn.Module]] = [
        (twin.token_embedding, ours.lower.wte),
        (twin.position_embedding, ours.lower.wpe),
        (twin.lower, ours.lower.h),
        (twin.predictor, ours.predictor),
        (twin.mixing, ours.mixing),
        (twin.upper, ours.upper.h),
        (twin.final_norm, ours.upper.ln_f),
    ]
    compared = 0
    for theirs, part in parts:
        gradients = {name: parameter.grad for name, parameter in part.named_parameters()}
        for name, parameter in theirs.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
            compared += parameter.numel()
    assert compared == count_parameters(twin) == count_parameters(ours)  # the head is the token embedding


def test_positions_without_labels_do_not_count() -> None:
    model = student("gpt2")
    input_ids, labels = tokens(), concepts()
    labels[:, ::2] = -100
    expected = model(input_ids, labels=input_ids, concept_labels=labels).loss
    torch.testing.assert_close(NaiveStudent(model)(input_ids, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1])
def test_label_ids(layer: int) -> None:
    teacher = plain("gpt2")
    generator = torch.Generator().manual_seed(5)
    d_model, n_concepts = teacher.config.hidden_size, 48

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    dictionary = ConceptDictionary(
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
