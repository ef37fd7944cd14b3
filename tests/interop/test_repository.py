"""An export: complete, equal to the run, and of use where cocomix is not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cocomix import CoCoMixForCausalLM, ConceptEdit
from cocomix.artifacts import read_json, write_json
from cocomix.evaluation import Run, evaluate_run
from cocomix.interop import export_run
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop

OUTSIDE = Path(__file__).with_name("outside.py")
TEXT = "the list"  # the toy models' context is 16 tokens


@pytest.fixture(scope="module")
def exported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "mixed"
    return export_run(workshop.cocomix_run, output, license="mit", languages=("en",))


@pytest.mark.slow
def test_it_works_without_cocomix(exported: Path, workshop: Workshop, tmp_path: Path) -> None:
    result = tmp_path / "result.safetensors"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(OUTSIDE), str(exported), str(result), TEXT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    tensors = load_file(result)

    run = Run.open(workshop.cocomix_run)
    model, tokenizer = run.model(), run.tokenizer()
    prompt = tokenizer(TEXT, return_tensors="pt")
    edits = [ConceptEdit(3, "add", 50.0)]
    with torch.no_grad():
        assert torch.equal(tensors["logits"], model(**prompt).logits)
        assert torch.equal(tensors["steered"], model(**prompt, concept_edits=edits).logits)
        log_likelihood = model(**tokenizer(TEXT + " list", return_tensors="pt")).logits.log_softmax(-1)
    assert not torch.equal(tensors["steered"], tensors["logits"])
    assert torch.equal(tensors["again"], tensors["logits"])  # saved once more by transformers, and loaded
    ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert torch.equal(tensors["ids"], ids)
    assert said["without_cache"] == ids.tolist()
    assert said["cache"] == "CoCoMixCache"
    assert said["cocomix"] == []
    assert said["pipeline"] == tokenizer.decode(ids[0], skip_special_tokens=True)
    ending = tokenizer(TEXT + " list", return_tensors="pt").input_ids[0, prompt.input_ids.shape[1] :]
    places = log_likelihood[0, prompt.input_ids.shape[1] - 1 : -1]
    assert said["log_likelihood"] == pytest.approx(float(places.gather(-1, ending[:, None]).sum()), abs=1e-4)


def test_the_folder(exported: Path, workshop: Workshop) -> None:
    assert (exported / "model.safetensors").read_bytes() == (workshop.cocomix_run / "model.safetensors").read_bytes()
    config, trained = read_json(exported / "config.json"), read_json(workshop.cocomix_run / "config.json")
    assert config.pop("auto_map") == {
        "AutoConfig": "configuration_cocomix.CoCoMixConfig",
        "AutoModelForCausalLM": "modeling_cocomix.CoCoMixForCausalLM",
    }
    trained.pop("auto_map")
    assert config == trained
    names = {path.name for path in exported.iterdir()}
    assert not names & {"cocomix_classes.py", "manifest.json", "recipe.yaml", "metrics.jsonl", "tensorboard"}
    # Where cocomix is imported its own classes are used.
    assert type(AutoModelForCausalLM.from_pretrained(exported)) is CoCoMixForCausalLM


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_model_card(exported: Path, workshop: Workshop) -> None:
    front, text = card_of(exported)
    assert front == {
        "language": ["en"],
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["cocomix"],
    }
    manifest = read_json(workshop.cocomix_run / "manifest.json")
    labels = read_json(workshop.labels / "manifest.json")
    for fact in (
        f"{manifest['final']['eval_loss']:.4f}",
        f"{manifest['parameters']['active']:,}",
        f"{manifest['tokens']:,} in {manifest['steps']} steps",
        f"| teacher | {workshop.teacher.name}, block 1 |",
        f"{labels['statistics']['distinct_concepts']} of {CONCEPTS}",
        labels["made_from"]["dictionary"],
        manifest["data"]["fingerprint"],
        "trust_remote_code=True",
        "Weights: mit.",
        "learning_rate: 0.01",
    ):
        assert fact in text, fact
    assert str(workshop.folder) not in text  # paths of the machine are nobody else's business


def test_what_was_measured_is_in_the_card(workshop: Workshop, tmp_path: Path) -> None:
    run = Path(shutil.copytree(workshop.cocomix_run, tmp_path / "run"))
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    evaluate_run(Run.open(run), device=torch.device("cpu"), limit_blocks=4)
    (written,) = (run / "evaluations").glob("*/evaluation.json")
    ends = {"low": -0.5, "high": 0.5}
    kinds = {"zero": {"nats": 0.25, **ends}, "shuffle": {"nats": -0.125, **ends}}
    values = {"loss": 4.5, "targets": 1234, "bits_per_byte": 1.75, "reliance": {"kinds": kinds, "documents": 9}}
    values |= {"data_fingerprint": "0" * 64}
    write_json(written, read_json(written) | values)
    other = written.parent.with_name("other") / written.name  # newer, of other data
    other.parent.mkdir()
    write_json(other, read_json(written) | {"loss": 9.75, "data_fingerprint": "1" * 64})
    conditions = {"harness": "0.4", "context": 16, "dtype": "float32", "limit": None}
    counts = {"source": "hub", "examples": 9, "requests": 18, "truncated": 0, "endings_cut": 0, "batch_size": 1}
    task = {**counts, "metrics": {"acc_norm": 0.6125}}
    (run / "evaluations" / "tasks").mkdir()
    downstream = {"format_version": 2, "conditions": conditions, "tasks": {"piqa": task}}
    write_json(run / "evaluations" / "tasks" / "downstream.json", downstream)
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "data": {**manifest["data"], "fingerprint": "0" * 64}})
    front, text = card_of(export_run(run, tmp_path / "out"))
    for fact in (
        "4.5000",
        "1,234",
        "1.7500",
        "+0.250",
        "\u22120.125",
        "0.6125",
        "a table of the current token",
        "| text | not recorded with the run |",
    ):
        assert fact in text, fact
    assert "9.7500" not in text
    assert "license" not in front
    assert "not stated" in text


def test_a_plain_decoder_needs_no_code(workshop: Workshop, tmp_path: Path) -> None:
    output = export_run(workshop.ntp_run, tmp_path / "plain")
    assert not list(output.glob("*.py"))
    assert "auto_map" not in read_json(output / "config.json")
    front, text = card_of(output)
    assert front["tags"] == ["cocomix", "ntp"]
    assert "trust_remote_code" not in text
    assert "concept" not in text.lower().replace("cocomix", "")


def test_the_decoder_of_a_run_that_mixes_nothing_in(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    run = train(workshop.recipe("cocomix", tokens=8 * BLOCK, model={"mixing": "none"}), tmp_path / "run")
    output = export_run(run, tmp_path / "out", decoder=True)
    decoder, model = AutoModelForCausalLM.from_pretrained(output), Run.open(run).model()
    prompt = Run.open(run).tokenizer()(TEXT, return_tensors="pt")
    assert read_json(output / "config.json")["model_type"] == model.config.backbone.model_type
    assert torch.equal(decoder(**prompt).logits, model(**prompt).logits)
    assert not list(output.glob("*.py"))
    text = card_of(output)[1]
    assert "trust_remote_code" not in text
    assert f"| parameters | {decoder.num_parameters():,} |" in text
    assert "mixes them in" not in text
    cli("export", run, "--to", "decoder", "-o", tmp_path / "again")
    assert read_json(tmp_path / "again" / "config.json") == read_json(output / "config.json")
    cli.refuses("export", workshop.cocomix_run, "--to", "decoder", "-o", tmp_path / "mixed", says="mixing: interleave")
    assert not list(tmp_path.glob("mixed*"))


def test_a_decoder_of_our_class_without_concepts_says_so(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe("ntp", tokens=8 * BLOCK, model={"bigram_rows": 40})
    output = export_run(train(recipe, tmp_path / "run"), tmp_path / "out")
    text = card_of(output)[1]
    assert "trust_remote_code=True" in text
    assert "`plain`" in text
    assert "ConceptEdit" not in text
    assert "it predicts concepts" not in text
    assert list(output.glob("bigram_cocomix.py"))


def test_runs_that_cannot_be_exported(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="already exists"):
        export_run(workshop.ntp_run, workshop.data)
    with pytest.raises(CoCoMixError, match=str(workshop.data)):
        export_run(workshop.data, tmp_path / "out")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(CoCoMixError, match="not finished"):
        export_run(tmp_path / "half", tmp_path / "out")
    for name, spoil, says in (
        ("changed", lambda run: (run / "model.safetensors").write_bytes(b"x"), "has changed since the run was trained"),
        ("lost", lambda run: (run / "model.safetensors").unlink(), r"lacks model\.safetensors"),
        ("mute", lambda run: (run / "tokenizer.json").unlink(), r"lacks tokenizer\.json"),
    ):
        run = Path(shutil.copytree(workshop.ntp_run, tmp_path / name))
        spoil(run)
        with pytest.raises(CoCoMixError, match=says):
            export_run(run, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))
