import pytest
import torch

from cocomix.concepts import ConceptTeacher, scoring
from cocomix.concepts.decoder import target_mask

from .conftest import BACKBONES, D_MODEL, make_dictionary, make_model

KINDS = ("topk", "jumprelu", "relu")


def naive_gradients(model, layer, input_ids, mask=None, each_target=False):
    """(hidden, ∂ mean loss/∂h by a full backward pass, ∂ loss of each position's own target/∂h by one pass each)."""
    mask = torch.ones_like(input_ids) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.requires_grad_(True)
    hidden = []
    block = model.base_model.get_submodule("h" if model.config.model_type == "gpt2" else "layers")[layer]
    handle = block.register_forward_hook(lambda module, args, output: hidden.append(output))
    logits = model(input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    handle.remove()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
    valid = target_mask(input_ids, mask)[:, :-1]
    (mean_gradient,) = torch.autograd.grad(losses[valid].mean(), hidden[0], retain_graph=True)
    own = torch.zeros_like(mean_gradient)
    for row, position in valid.nonzero().tolist() if each_target else []:  # one backward pass per target
        (gradient,) = torch.autograd.grad(losses[row, position], hidden[0], retain_graph=True)
        own[row, position] = gradient[row, position]
    model.requires_grad_(False)
    return hidden[0].detach(), mean_gradient, own


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_attribution_equals_the_naive_twin(backbone, kind, input_ids):
    model, dictionary = make_model(backbone), make_dictionary(kind)
    hidden, gradient, _ = naive_gradients(model, 1, input_ids)
    expected = dictionary.latents(hidden) * (gradient @ dictionary.W_dec.T)
    teacher = ConceptTeacher(model, dictionary, 1)
    torch.testing.assert_close(teacher.attribution(input_ids), expected, rtol=1e-4, atol=1e-6)
    pre = teacher.attribution(input_ids, activation="pre")
    expected_pre = dictionary.pre_activations(hidden) * (gradient @ dictionary.W_dec.T)
    torch.testing.assert_close(pre, expected_pre, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_gradient_of_the_own_next_token_equals_one_backward_pass_per_target(backbone, layer, padding, input_ids):
    input_ids = input_ids[:2, :6]
    mask = None
    if padding is not None:
        mask = torch.ones_like(input_ids)
        mask[1, :2] = 0
        mask = mask if padding == "left" else mask.flip(-1)
    model = make_model(backbone)
    _, _, own = naive_gradients(model, layer, input_ids, mask, each_target=True)
    teacher = ConceptTeacher(model, make_dictionary(), layer)
    found = teacher.decoder.loss_gradient(input_ids, mask, scope="next").gradient
    labelled = target_mask(input_ids, mask)
    torch.testing.assert_close(found[labelled], own[labelled], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sign", ["loss", "logprob", "abs"])
@pytest.mark.parametrize("activation", ["latent", "pre"])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_best_of_the_dense_attribution(kind, activation, sign, input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(kind), 1)
    attribution = teacher.attribution(input_ids, activation=activation)
    criterion = {"loss": attribution, "logprob": -attribution, "abs": attribution.abs()}[sign]
    labels = teacher.label(input_ids, k=3, activation=activation, sign=sign)
    best, ids = criterion.topk(3)
    expected = ids.masked_fill(best <= 0, -100)
    assert torch.equal(labels.ids, expected)
    assert (labels.ids != -100).any()
    assert (labels.ids[:, -1] == -100).all()
    found = labels.ids != -100
    torch.testing.assert_close(labels.scores[found], attribution.gather(-1, ids)[found])
    assert not labels.scores[~found].any()


def test_summed_scores_do_not_depend_on_the_batch(input_ids):
    teacher = ConceptTeacher(make_model("llama"), make_dictionary(), 1)
    together = teacher.label(input_ids, reduction="sum")
    alone = [teacher.label(row[None], reduction="sum") for row in input_ids]
    assert torch.equal(together.ids, torch.cat([labels.ids for labels in alone]))
    torch.testing.assert_close(together.scores, torch.cat([labels.scores for labels in alone]), rtol=1e-4, atol=1e-6)
    mean = teacher.label(input_ids)
    assert torch.equal(mean.ids, together.ids)
    torch.testing.assert_close(mean.scores * input_ids[:, 1:].numel(), together.scores)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_label(backbone, side, input_ids):
    teacher = ConceptTeacher(make_model(backbone), make_dictionary(), 1)
    short = input_ids[:, :7]
    padding, ones = torch.zeros(3, 4, dtype=torch.long), torch.ones_like(short)
    order = (lambda pad, rest: [pad, rest]) if side == "left" else (lambda pad, rest: [rest, pad])
    padded = teacher.label(torch.cat(order(padding, short), -1), torch.cat(order(padding, ones), -1), reduction="sum")
    plain = teacher.label(short, reduction="sum")
    kept = slice(4, None) if side == "left" else slice(0, 7)
    assert torch.equal(padded.ids[:, kept], plain.ids)
    torch.testing.assert_close(padded.scores[:, kept], plain.scores, rtol=1e-4, atol=1e-6)
    outside = torch.ones(11, dtype=torch.bool)
    outside[kept] = False
    assert (padded.ids[:, outside] == -100).all()


@pytest.mark.parametrize("kind", KINDS)
def test_chunking_changes_nothing(kind, monkeypatch, input_ids):
    dictionary = make_dictionary(kind)
    hidden, gradient = torch.randn(5, D_MODEL), torch.randn(5, D_MODEL)
    codes = dictionary.encode(hidden)
    whole = scoring.attribute(dictionary, codes, gradient)
    monkeypatch.setattr(scoring, "_CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(scoring.attribute(dictionary, codes, gradient), whole)
    dense = dictionary.latents(hidden) * (gradient @ dictionary.W_dec.T)
    torch.testing.assert_close(dense.gather(-1, codes.ids)[codes.values > 0], whole[codes.values > 0])


def test_fewer_candidates_than_labels_leave_the_rest_empty(input_ids):
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)  # eight active concepts per position
    labels = teacher.label(input_ids, k=12)
    assert labels.ids.shape == (3, 11, 12)
    assert (labels.ids[..., 8:] == -100).all()
