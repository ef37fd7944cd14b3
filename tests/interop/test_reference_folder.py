"""Checkpoint folders as the released code's trainer saves them: read, written, refused; and `cocomix import`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cocomix.interop import ConceptSettings, read_reference_folder, to_reference_state_dict, write_reference_folder
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.golden import golden_files, read_golden
from tests.model.factories import D_MODEL, HEADS, LAYERS, TOPK, VOCAB, student, tokens
from tests.workshop import Workshop

# What transformers 4.44 writes for a GPT-2 made from openai-community/gpt2, as the released code makes it.
OLD_CONFIG: dict[str, Any] = {
    "_name_or_path": "openai-community/gpt2",
    "activation_function": "gelu_new",
    "architectures": ["GPT2CoCoMixLMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": D_MODEL,
    "n_head": HEADS,
    "n_inner": None,
    "n_layer": LAYERS,
    "n_positions": 64,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "float32",
    "transformers_version": "4.44.2",
    "use_cache": True,
    "vocab_size": VOCAB,
}
RUN_CONFIG = f"""\
wandb_key: null
mode: cocomix
n_embd: {D_MODEL}
insert_layer_index: 1
sae_layer_index: 5
concept_dim: 48
concept_num: {TOPK}
lam_concept: 0.3
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """`logs/run/last`, with the run's settings above it and the optimizer's pickles in it."""
    folder = tmp_path / "logs" / "run" / "last"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text(RUN_CONFIG)
    (folder / "config.json").write_text(json.dumps(OLD_CONFIG))
    save_file(to_reference_state_dict(student("gpt2")), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(b"not read")
    return folder


def test_an_old_checkpoint_gives_its_logits_and_settings(checkpoint: Path) -> None:
    model = read_reference_folder(checkpoint)
    assert torch.equal(model(tokens()).logits, student("gpt2")(tokens()).logits)
    config, backbone = model.config, model.config.backbone
    assert (config.insert_layer, config.num_concepts, config.concept_topk) == (1, 48, TOPK)
    assert (config.concept_loss_weight, config.mixing) == (0.3, "interleave")
    assert (backbone.resid_pdrop, backbone.n_inner, backbone.eos_token_id) == (0.1, 4 * D_MODEL, 50256)
    assert not model.training


def test_shards(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    files = {f"model-{part + 1:05d}-of-00002.safetensors": sorted(tensors)[part::2] for part in range(2)}
    for file, names in files.items():
        save_file({f"module.{name}": tensors[name] for name in names}, checkpoint / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(read_reference_folder(checkpoint)(tokens()).logits, student("gpt2")(tokens()).logits)


def test_settings_can_be_given(checkpoint: Path) -> None:
    other = read_reference_folder(checkpoint, ConceptSettings(2, 3, 0.0))
    assert (other.config.insert_layer, other.config.concept_topk, other.config.concept_loss_weight) == (2, 3, 0.0)
    (checkpoint.parent / "config.yaml").unlink()
    with pytest.raises(CoCoMixError, match=r"insert_layer_index.*--insert-layer"):
        read_reference_folder(checkpoint)
    alone = read_reference_folder(checkpoint, ConceptSettings(1, TOPK))
    assert alone.config.concept_loss_weight == 0.1
    assert torch.equal(alone(tokens()).logits, student("gpt2")(tokens()).logits)


@pytest.mark.parametrize("path", golden_files("model"))
def test_golden_weights_through_a_folder_and_back(path: Path, tmp_path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    folder = tmp_path / "last"
    folder.mkdir()
    sizes = {
        "n_embd": weights["transformer.wte.weight"].shape[1],
        "n_head": meta["n_head"],
        "n_layer": len({name.split(".")[2] for name in weights if ".h." in name}),
        "n_positions": len(weights["transformer.wpe.weight"]),
        "vocab_size": len(weights["transformer.wte.weight"]),
    }
    (folder / "config.json").write_text(json.dumps(OLD_CONFIG | sizes))
    settings = {key: meta[key] for key in ("insert_layer_index", "concept_num", "lam_concept")}
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    model = read_reference_folder(folder)
    logits = model(golden["input_ids"]).logits
    torch.testing.assert_close(logits, golden["logits"].view_as(logits), atol=1e-5, rtol=1e-5)
    write_reference_folder(model, folder)
    assert torch.equal(read_reference_folder(folder)(golden["input_ids"]).logits, logits)
    written = load_file(folder / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weights[name]) for name in weights)


# The command line ----------------------------------------------------------------------------------------------------


def test_import_and_back(cli: Cli, checkpoint: Path, workshop: Workshop, tmp_path: Path) -> None:
    said = cli("import", checkpoint, "-o", tmp_path / "ours", "--json")
    assert json.loads(said.out)["num_concepts"] == 48
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert isinstance(model, CoCoMixForCausalLM)
    assert torch.equal(model.eval()(tokens()).logits, student("gpt2")(tokens()).logits)
    cli("import", tmp_path / "ours", "--to-released", "-o", tmp_path / "theirs")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "theirs"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    cli.refuses("import", checkpoint, "-o", tmp_path / "ours", says="exists")
    tokenizer = ("--tokenizer", workshop.data / "tokenizer")
    cli.refuses("import", checkpoint, "-o", tmp_path / "more", *tokenizer, says="the model in")
    assert not (tmp_path / "more").exists()


def test_a_run_for_the_released_code(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    cli("import", workshop.cocomix_run, "--to-released", "-o", tmp_path / "theirs")
    tokenizer = ("--tokenizer", workshop.data / "tokenizer")
    cli("import", tmp_path / "theirs", "-o", tmp_path / "ours", *tokenizer)
    run, back = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (workshop.cocomix_run, tmp_path / "ours")
    )
    assert torch.equal(run(tokens()).logits, back(tokens()).logits)
    assert (tmp_path / "ours" / "tokenizer.json").is_file()
    cli.refuses("import", workshop.ntp_run, "--to-released", "-o", tmp_path / "x", says="holds a plain gpt2")


# What is refused -----------------------------------------------------------------------------------------------------


def edited(name: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return change


def run_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder.parent / "config.yaml").write_text(text)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def strange_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (edited("config.json", model_type="llama"), "is not a GPT-2's"),
        (edited("config.json", n_head="eight"), "n_head = 'eight'"),
        (edited("config.json", n_head=7), "7 attention heads cannot share"),
        (edited("config.json", n_layer=9), "disagree about the sizes"),
        (edited("config.json", activation_function="none"), "last: "),
        (edited("config.json", scale_attn_by_inverse_layer_idx=True), "cannot be split"),
        (run_config("- a list\n"), "settings by name"),
        (run_config("insert_layer_index: null\n"), "give --insert-layer"),
        (run_config(RUN_CONFIG.replace("0.3", "much")), "lam_concept in config.yaml is 'much'"),
        (run_config(RUN_CONFIG.replace(f"concept_num: {TOPK}", "concept_num: 99")), "concept_topk=99"),
        (only_pickles, r"pickles \(pytorch_model.bin\) are not read"),
        (truncated, "model.safetensors is damaged"),
        (strange_index, "lacks weights as safetensors"),
    ],
)
def test_malformed_folders(checkpoint: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(checkpoint)
    with pytest.raises(CoCoMixError, match=says) as refused:
        read_reference_folder(checkpoint)
    assert "\n" not in str(refused.value)
