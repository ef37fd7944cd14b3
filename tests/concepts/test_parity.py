"""The released code's recorded numbers; see the golden folder's own README for what each tensor is."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts import ConceptDictionary, ConceptTeacher, SparseCodes
from cocomix.concepts.scoring import attribute
from tests.golden import golden_files, read_golden


def restore_teacher(model, recorded, seed):
    """Load the recorded weights, and draw again the attention's input biases, which the recording lost.

    Every weight was a fresh initialisation plus 0.08 · N(0, 1), drawn in parameter order after `manual_seed(seed +
    1)`; the biases' initialisation is zero. The norms' weights, recorded and drawn alike, prove that the draws are the
    right ones.
    """
    missing = set(model.load_state_dict(recorded, strict=False).missing_keys) - {"lm_head.weight"}
    if not missing:
        return
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.08 * torch.randn_like(parameter)
            if name in missing:
                assert name.endswith("c_attn.bias")
                parameter.copy_(noise)
            elif name.endswith("ln_1.weight"):
                torch.testing.assert_close(recorded[name], 1 + noise)


@pytest.fixture(params=golden_files("attribution"))
def golden(request):
    meta, tensors = read_golden(request.param)
    shape = {key: meta[key] for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    model = GPT2LMHeadModel(GPT2Config(**shape))
    restore_teacher(model, {name.removeprefix("teacher."): tensor for name, tensor in tensors.items()}, meta["seed"])
    dictionary = ConceptDictionary(
        tensors["sae.encoder.weight"].T,
        tensors["sae.latent_bias"],
        tensors["sae.decoder.weight"].T,
        tensors["sae.pre_bias"],
        k=meta["sae_k"],
        normalize="layer_norm",
    )
    return ConceptTeacher(model, dictionary, meta["sae_layer_index"]), tensors, meta


def test_hidden_states_and_their_gradient(golden):
    teacher, tensors, _ = golden
    hidden, gradient, _ = teacher.decoder.loss_gradient(tensors["input_ids"])
    targets = tensors["input_ids"][:, 1:].numel()
    torch.testing.assert_close(hidden, tensors["hidden_states"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient / targets, tensors["grad_hidden"], rtol=0, atol=1e-6)
    assert torch.equal(teacher.decoder.hidden_states(tensors["input_ids"]), hidden)


def test_encodings(golden):
    teacher, tensors, _ = golden
    hidden = tensors["hidden_states"]
    torch.testing.assert_close(
        teacher.dictionary.pre_activations(hidden), tensors["pre_activations"], rtol=0, atol=2e-6
    )
    torch.testing.assert_close(teacher.dictionary.latents(hidden), tensors["latents"], rtol=0, atol=2e-6)


def test_attribution(golden):
    teacher, tensors, _ = golden
    attribution = teacher.attribution(tensors["input_ids"])
    torch.testing.assert_close(attribution, tensors["attribution"], rtol=0, atol=1e-6)
    assert not attribution[:, -1].any()


def test_labels(golden):
    teacher, tensors, meta = golden
    k = meta["topK_attri"]
    labels = teacher.label(tensors["input_ids"], k=k)
    assert (labels.ids[:, -1] == -100).all()
    best = tensors["attribution"].sort(dim=-1, descending=True).values
    untied = best[..., k - 1] - best[..., k] > 1e-7  # the k-th and the next score differ, so the set is determined
    compared = 0
    for row, position in (untied & (best[..., 0] > 0)).nonzero().tolist():
        expected = {
            concept
            for concept, score in zip(
                tensors["concept_labels"][row, position].tolist(),
                tensors["concept_scores"][row, position].tolist(),
                strict=True,
            )
            if score > 0
        }
        found = labels.ids[row, position]
        assert set(found[found != -100].tolist()) == expected
        compared += 1
    assert compared > untied.numel() / 2
    labelled = labels.ids != -100
    torch.testing.assert_close(labels.scores[labelled], tensors["concept_scores"][labelled], rtol=0, atol=1e-6)


def test_attribution_of_the_recorded_states_and_gradient(golden):
    """Needs no teacher, so no redrawn biases: everything it reads was recorded."""
    teacher, tensors, _ = golden
    dictionary = teacher.dictionary
    codes = dictionary.encode(tensors["hidden_states"])
    ours = dictionary.densify(SparseCodes(codes.ids, attribute(dictionary, codes, tensors["grad_hidden"])))
    torch.testing.assert_close(ours, tensors["attribution"], rtol=0, atol=1e-6)
