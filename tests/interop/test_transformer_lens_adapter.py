"""A student behind TransformerLens' bridge: its numbers, its concepts read and edited by hooks."""

import copy
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from cocomix import CoCoMixForCausalLM
from tests.model.factories import CONCEPTS, D_MODEL, LAYERS, student, tokens

NAME, GROUP = "CoCoMixForCausalLM", "transformer_lens.architectures"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TransformerLens does with the entry points of installed packages."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    adapter = EntryPoint(NAME, project["entry-points"][GROUP][NAME], GROUP).load()
    monkeypatch.setitem(ArchitectureAdapterFactory._adapters, NAME, adapter)


def bridged(model: CoCoMixForCausalLM) -> TransformerBridge:
    return build_bridge_from_module(copy.deepcopy(model), NAME, hf_config=model.config)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {}),
        ("llama", {"mixing": "add"}),
        ("gemma2", {"insert_layer": 0}),
        ("gpt_neox", {"mixing": "none"}),
        ("llama", {"mixing": "pause"}),
        ("llama", {"mixing": "plain", "bigram_rows": 40}),
        ("llama", {"mixing": "loop"}),
        ("llama", {"prediction": "hidden", "teacher_hidden_size": 12}),
    ],
)
def test_the_numbers_are_the_models(family: str, settings: dict[str, Any]) -> None:
    model, ids = student(family, **settings), tokens()
    width = model.config.positions_per_token * ids.shape[1]
    with torch.no_grad():
        expected = model(ids)
        logits, seen = bridged(model).run_with_cache(ids)
    assert torch.equal(logits, expected.logits)
    assert seen["mixing.hook_in"].shape == (2, 11, D_MODEL)
    assert seen["mixing.hook_out"].shape == seen[f"upper.{LAYERS - model.config.insert_layer - 1}.hook_out"].shape
    assert seen["mixing.hook_out"].shape == (2, width, D_MODEL)
    assert f"blocks.{model.config.insert_layer}.hook_in" not in seen
    assert ("mixing.hook_concepts" in seen) == model.config.has_concepts
    if model.config.has_concepts:
        concepts = seen["mixing.hook_concepts"]
        assert torch.equal(concepts.gather(-1, expected.concept_ids), expected.concept_values)
        assert (concepts.ne(0).sum(-1) <= model.config.concept_topk).all()


def test_concepts_are_edited_by_a_hook() -> None:
    """Turned up beyond the top k, and all turned off: as the same intervention in the model."""
    model, ids = student("llama"), tokens()
    bridge = bridged(model)

    def dense(ids: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(*ids.shape[:2], CONCEPTS).scatter(-1, ids, values)

    def turned_up(shown: Tensor) -> Tensor:
        return shown.index_fill(-1, torch.tensor([7, 9]), 20.0)

    def in_place(shown: Tensor) -> Tensor:
        shown[..., 7] = 20.0
        return shown

    for edit in (turned_up, in_place, torch.zeros_like):

        def intervention(ids: Tensor, values: Tensor, edit: Any = edit) -> tuple[Tensor, Tensor]:
            return torch.arange(CONCEPTS).expand(*ids.shape[:2], -1), edit(dense(ids, values))

        with torch.no_grad():
            expected = model(ids, concept_intervention=intervention).logits
            hook = ("mixing.hook_concepts", lambda shown, hook, edit=edit: edit(shown))
            edited = bridge.run_with_hooks(ids, fwd_hooks=[hook])
            assert_close(edited, expected, rtol=1e-5, atol=1e-5)
            assert (edited - bridge(ids)).abs().max() > 0.1
    assert torch.equal(bridge(ids), model(ids).logits)  # nothing is left


def test_it_generates_and_has_gradients() -> None:
    model, ids = student("gpt2"), tokens()
    bridge = bridged(model)
    written = bridge.generate(ids, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    assert torch.equal(written, model.generate(ids, max_new_tokens=4, do_sample=False))
    loss = bridge(ids, return_type="loss")
    assert_close(loss, model(ids, labels=ids).ntp_loss)
    loss.backward()
    assert bridge.mixing.compression.weight.grad.abs().sum() > 0
