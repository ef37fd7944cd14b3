"""A student as an autoencoder: our own forward pass, and SAEBench's functions where it is installed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cocomix.interop.saebench import StudentSAE
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import CONCEPTS, D_MODEL, TOPK, student, tokens


def entering(model: CoCoMixForCausalLM, ids: Tensor) -> Tensor:
    """Hidden states before block `insert_layer`. [batch, seq, d_model]"""
    return model.lower(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("weights", ["logits", "softmax"])
@pytest.mark.parametrize("mixing", ["interleave", "add", "residual"])
def test_it_is_the_students_forward_pass(mixing: str, weights: str) -> None:
    model, ids = student("llama", mixing=mixing, concept_weights=weights), tokens()
    sae = StudentSAE(model)
    with torch.no_grad():
        hidden, said = entering(model, ids), model(ids)
        latents = sae.encode(hidden)
        mixed = model.mixing(hidden, model.predictor(hidden).concepts)
        vector = mixed - hidden if mixing == "add" else mixed[:, 1::2]
        assert (latents.ne(0).sum(-1) == TOPK).all()
        scales = model.compression_weight.norm(dim=1)[said.concept_ids]
        values = said.concept_values if weights == "logits" else said.concept_values.softmax(-1)
        assert_close(latents.gather(-1, said.concept_ids), values * scales)
        assert_close(sae.decode(latents), vector, rtol=1e-4, atol=1e-5)
        assert_close(sae(hidden), vector, rtol=1e-4, atol=1e-5)
        assert_close(sae.W_dec.norm(dim=1), torch.ones(CONCEPTS))
    assert (sae.W_enc.shape, sae.W_dec.shape) == ((D_MODEL, CONCEPTS), (CONCEPTS, D_MODEL))
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.dtype) == (D_MODEL, CONCEPTS, "float32")
    assert sae.to(torch.bfloat16).dtype == torch.bfloat16


def test_what_it_cannot_do() -> None:
    sae = StudentSAE(student("llama"))
    with pytest.raises(CoCoMixError, match="encode"):
        sae.decode(torch.zeros(1, 2, CONCEPTS))
    for mixing in ("none", "pause", "values"):
        with pytest.raises(CoCoMixError, match="mixing"):
            StudentSAE(student("llama", mixing=mixing))


def test_saebench_takes_it(tmp_path: Path) -> None:
    """Its interface, its weights' metrics, sparse probing and ablation, on hidden states of two kinds of text."""
    pytest.importorskip("sae_bench", reason="SAEBench pins older packages; pip install --no-deps sae-bench")
    from sae_bench.custom_saes.base_sae import BaseSAE
    from sae_bench.custom_saes.custom_sae_config import CustomSAEConfig
    from sae_bench.evals.core.main import get_featurewise_weight_based_metrics
    from sae_bench.evals.scr_and_tpp.main import ablated_precomputed_activations
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.main import run_eval_single_dataset
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    model = student("llama", mixing="add")
    sae = StudentSAE(model)
    assert {name for name in vars(BaseSAE) if not name.startswith(("_", "test", "check"))} <= set(dir(sae))
    assert {field.name for field in dataclasses.fields(CustomSAEConfig)} <= {*vars(sae.cfg)}
    with torch.no_grad():
        assert BaseSAE.check_decoder_norms(sae)
        loaded = load_and_format_sae("custom", sae, "cpu")
        assert loaded is not None
        assert loaded[1] is sae
        assert len(get_featurewise_weight_based_metrics(sae)["encoder_norm"]) == CONCEPTS

        even = tokens(80) // 2 * 2 % 60
        kinds = {"even": entering(model, even), "odd": entering(model, even + 1)}
        train = {name: states[:60].clone() for name, states in kinds.items()}
        test = {name: states[60:].clone() for name, states in kinds.items()}
        removed = ablated_precomputed_activations(kinds["even"], sae, torch.ones(CONCEPTS, dtype=torch.bool), 16)
        assert removed.shape == (80, D_MODEL)
    config = SparseProbingEvalConfig(k_values=[], sae_batch_size=16)
    torch.save({"train": train, "test": test, "llm_results": {}}, tmp_path / "kinds_activations.pt")
    where = {"layer": 0, "hook_point": sae.cfg.hook_name, "device": "cpu", "artifacts_folder": str(tmp_path)}
    results, _ = run_eval_single_dataset("kinds", config, sae, model, **where, save_activations=False)
    assert 0.5 < results["sae_test_accuracy"] <= 1.0
