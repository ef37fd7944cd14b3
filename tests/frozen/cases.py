"""What is frozen: plain values, so that a change of cocomix's API does not touch them."""

from typing import Any

BLOCK, STEPS, BATCH = 32, 30, 8

# ---- labels --------------------------------------------------------------------------------------------------------

TEACHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"layer": 1, "normalize": "layer_norm", "k": 12},
    "llama": {"layer": 0, "normalize": "none", "threshold": 0.6},
    "qwen3": {"layer": 2, "normalize": "constant_norm"},
}
"""Decoders and how their dictionaries activate and scale: TopK, JumpReLU, ReLU."""

LABEL_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "next": {"gradient": "next"},
    "logprob": {"sign": "logprob"},
    "abs": {"sign": "abs"},
    "pre": {"activation": "pre"},
    "next_pre_abs": {"gradient": "next", "activation": "pre", "sign": "abs"},
    "activation": {"selection": "activation"},
    "random": {"selection": "random"},
    "random_seed_3": {"selection": "random", "seed": 3},
}
"""How labels are chosen (`selection` is the kind of labeller); every teacher labels the same rows with each."""

SHOWN_BLOCKS = 64
"""Blocks at the beginning of a split whose stored labels are recorded; a hash stands for all."""

STORED_LABELS: dict[str, dict[str, Any]] = {"attribution": {}, "random": {"selection": "random", "seed": 1}}
"""Labels of the training corpus, written as `cocomix label` does; the first are the ones that students train on."""

# ---- corpora -------------------------------------------------------------------------------------------------------

CORPORA = ("training", "second", "jsonl", "unicode", "long", "begin", "parquet", "tokens")
"""See `World._corpus`. Every one names its validation sources: the random split of documents is free to change."""

# ---- training ------------------------------------------------------------------------------------------------------

_GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 128, "initializer_range": 0.05}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

BASE: dict[str, Any] = {
    "objective": "cocomix",
    "data": "@training",
    "labels": "@labels",
    "model": {"backbone": {**_GPT2, **_NO_DROPOUT}, "insert_layer": 1, "concept_topk": 8},
    "tokens": STEPS * BATCH * BLOCK,
    "evaluation_blocks": 12,
    "training": {
        "learning_rate": 5e-3,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 8,
        "logging_steps": 1,
        "eval_steps": 15,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 7,
    },
}
"""A recipe; `@name` stands for the folder that `World` makes under this name."""

_TEACHER: dict[str, Any] = {"teacher": {"model": "@teacher", "layer": 1}}
_KD: dict[str, Any] = {**_TEACHER, "distillation": {"weight": 0.1}}
_ONLINE: dict[str, Any] = {**_TEACHER, "labels": "online", "dictionary": {"path": "@dictionary"}}


def _hidden(loss: str) -> dict[str, Any]:
    return {**_TEACHER, "labels": None, "model": {"prediction": "hidden", "hidden_loss": loss}}


ARMS: dict[str, dict[str, Any]] = {
    "ntp": {"objective": "ntp"},
    "ntp_matched": {"objective": "ntp", "baseline": "matched", "labels": None, "model": {"num_concepts": 3000}},
    "cocomix": {},
    "residual": {"model": {"mixing": "residual"}},
    "add": {"model": {"mixing": "add"}},
    "add_without_mean": {"model": {"mixing": "add", "add_mean": False, "compression_init": "zero"}},
    "prediction_only": {"model": {"mixing": "none"}},
    "mixing_only": {"labels": None, "model": {"concept_loss_weight": 0.0, "num_concepts": 64}},
    "residual_mixing_only": {
        "labels": None,
        "model": {"mixing": "residual", "concept_loss_weight": 0.0, "num_concepts": 64},
    },
    "init_small": {"model": {"compression_init": "small"}},
    "init_zero": {"model": {"compression_init": "zero"}},
    "pause": {"model": {"mixing": "pause"}},
    "pause_matched": {"baseline": "matched", "labels": None, "model": {"mixing": "pause", "num_concepts": 3000}},
    "pause_kd": {**_KD, "model": {"mixing": "pause"}},
    "kd": {**_KD, "objective": "ntp"},
    "kd_stored": {"objective": "ntp", "distillation": {"weight": 0.1, "targets": "@probabilities"}},
    "cocomix_kd": _KD,
    "hidden_l1": _hidden("l1"),
    "hidden_l2": _hidden("l2"),
    "hidden_cosine": _hidden("cosine"),
    "labels_online": _ONLINE,
    "labels_online_random": {**_ONLINE, "attribution": {"selection": "random", "seed": 1}},
    "labels_random": {"labels": "@labels_random"},
    "document_masks": {"document_masks": True},
    "llama_accumulated": {
        "model": {"backbone": _LLAMA},
        "training": {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2},
    },
    "continued": {
        "model": {
            "backbone": None,
            "pretrained": "@teacher",
            "mixing": "add",
            "add_mean": False,
            "compression_init": "zero",
        }
    },
    "mixture": {
        "objective": "ntp",
        "labels": None,
        "data": {"mixture": [{"path": "@training", "weight": 3}, {"path": "@second", "weight": 1}]},
    },
}
"""Changes of `BASE`, merged key by key."""

CURVES = ("loss", "ntp_loss", "concept_loss", "hidden_loss", "kd_loss", "grad_norm", "learning_rate")
"""Recorded at every step, of what a run logs."""
EVALUATIONS = ("eval_loss", "eval_concept_loss", "eval_hidden_loss", "eval_kd_loss")
"""Recorded at every evaluation."""

# ---- texts ---------------------------------------------------------------------------------------------------------

_LONGER: dict[str, Any] = {"tokens": 8 * STEPS * BATCH * BLOCK, "training": {"learning_rate": 1e-2, "eval_steps": 240}}

TEXT_ARMS: dict[str, dict[str, Any]] = {
    "ntp_longer": {**_LONGER, "objective": "ntp"},
    "residual_longer": {**_LONGER, "model": {"mixing": "residual"}},
}
"""Runs that write texts: trained until the likeliest token stands out, so that rounding does not choose another."""

_PROMPTS = ["the list of items", "café", "each node of the"]

TEXTS: dict[str, dict[str, Any]] = {
    "ntp": {"arm": "ntp_longer", "prompts": _PROMPTS},
    "residual": {"arm": "residual_longer", "prompts": _PROMPTS},
    "residual_steered": {"arm": "residual_longer", "prompts": _PROMPTS, "steer": ["12:=100@3", "5:ban"]},
}
NEW_TOKENS = 12

# ---- the released code's golden files --------------------------------------------------------------------------------

GOLDEN_LABELS = ("attribution_early", "attribution_mid")
GOLDEN_MODELS = ("model_first", "model_last", "model_mid")
