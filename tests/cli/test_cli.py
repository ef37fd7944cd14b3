"""The command line, verb by verb: what it writes, what it says, and how it refuses."""

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import cocomix.cli
from cocomix.artifacts import read_json
from cocomix.data import Tokens
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, VOCAB, Workshop, prepare_toy, write_corpus

SAE = ("--num-concepts", CONCEPTS, "--k", 8, "--tokens", 40_000, "--batch-size", 256, "--learning-rate", 5e-3)

# --- the whole way ----------------------------------------------------------------------------------------------------


def test_from_text_to_a_report(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    """The README's way, each verb once, on what the verb before wrote."""
    data, sae, labels = tmp_path / "data", tmp_path / "sae", tmp_path / "labels"
    sizes = ("--vocab-size", VOCAB, "--block-size", BLOCK, "--validation-fraction", 0.2)
    meta = json.loads(cli("prepare", workshop.corpus, *sizes, "--output", data, "--json").out)
    assert meta == read_json(data / "manifest.json")
    assert meta["block_size"] == BLOCK

    report = json.loads(cli("sae", data, "--teacher", workshop.teacher, "--layer", 1, *SAE, "-o", sae, "--json").out)
    assert report == read_json(sae / "manifest.json")

    manifest = json.loads(
        cli("label", data, "--teacher", workshop.teacher, "--dictionary", sae, "-o", labels, "--json").out
    )
    assert manifest == read_json(labels / "manifest.json")
    assert manifest["labels"]["teacher"]["layer"] == 1  # as `sae` noted it

    places = {"data": str(data), "labels": str(labels)}
    for name in ("ntp", "cocomix"):
        recipe = workshop.recipe_file(tmp_path / f"{name}.yaml", name, name=name, **places)
        printed = json.loads(cli("train", recipe, "--output", tmp_path / "runs" / name, "--json").out)
        assert printed == read_json(tmp_path / "runs" / name / "manifest.json")
    runs = [tmp_path / "runs" / name for name in ("ntp", "cocomix")]

    measured = json.loads(cli("eval", runs[1], "--json").out)
    (written,) = (runs[1] / "evaluations").glob("*/evaluation.json")
    assert measured == read_json(written)
    assert measured["reliance"]["kinds"]

    comparison = json.loads(cli("compare", *runs, "--output", tmp_path / "report", "--json").out)
    assert comparison
    assert list((tmp_path / "report").glob("*.html"))

    generated = json.loads(cli("generate", runs[1], "the list", "--steer", "3=5", "--max-new-tokens", 4, "--json").out)
    assert generated["steer"] == ["3=5"]
    assert generated["effects"][0].keys() == {"steer", "predicted", "acts", "would_act"}
    assert generated["prompt"] == "the list"

    tokens = json.loads(cli("inspect", runs[1], "the list", "--top", 2, "--json").out)
    assert "[concept " not in cli("inspect", runs[1], "the list", "--top", 6).out  # a number is no name
    assert all(len(token["concepts"]) == 2 for token in tokens)
    assert cli.allocator_calls == 10


def test_results_go_to_standard_output_and_progress_to_standard_error(
    cli: Cli, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "cocomix", tokens=2 * 8 * BLOCK)
    loud = cli("train", recipe, "--output", tmp_path / "loud")
    assert "bigram" in loud.out  # the loss beside those of n-gram tables
    assert "parameters" in loud.err
    assert "validation loss" in loud.err
    quiet = cli("train", recipe, "--output", tmp_path / "quiet", "--quiet")
    assert (quiet.out, quiet.err) == ("", "")
    table = cli("eval", tmp_path / "quiet", "--limit-blocks", 4, "--quiet")
    assert "Reliance" in table.out
    assert all(line.startswith("warning: ") for line in table.err.splitlines())  # such as of a model below the bigram


def test_text_for_people(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    run = workshop.cocomix_run
    text = cli("generate", run, "the list", "--max-new-tokens", 3, "--temperature", 0).out
    assert text.startswith("the list")
    assert cli("generate", run, "the list", "--max-new-tokens", 3, "--temperature", 0).out == text
    assert "the" in cli("inspect", run, "the list").out
    assert cli("inspect", run, "the list", "--no-describe").err == ""
    assert "nats per token" in cli("compare", run, workshop.ntp_run, "-o", tmp_path / "report", "-q").out


def test_a_plan_trains_nothing(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "cocomix", model={"num_concepts": CONCEPTS})
    result = cli("plan", recipe, "--seconds", 0, "--set", f"tokens={16 * 8 * BLOCK}")
    assert "active parameters" in result.out
    assert "MiB)" in result.out  # of a model this small
    plan = json.loads(cli("plan", recipe, "--seconds", 0, "--json").out)
    manifest = read_json(workshop.cocomix_run / "manifest.json")
    assert (plan["tokens"], plan["steps"]) == (manifest["tokens"], manifest["steps"])
    assert plan["parameters"] == manifest["parameters"]["total"]
    passes = ("--set", "tokens=null", "--set", "training.num_train_epochs=2")
    plan = json.loads(cli("plan", recipe, "--seconds", 0, "--json", *passes).out)
    assert plan["tokens"] == 2 * BLOCK * Tokens.open(workshop.data).manifest.splits["train"].blocks
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_default_output_folders(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = workshop.recipe_file(tmp_path / "small.yaml", "ntp", tokens=8 * BLOCK)
    cli("train", recipe, "-q")
    assert (tmp_path / "runs" / "small" / "manifest.json").is_file()
    shutil.copytree(workshop.data, tmp_path / "data")
    cli("label", "data", "--teacher", workshop.teacher, "--dictionary", workshop.dictionary, "-q")
    assert (tmp_path / "data" / "labels" / "manifest.json").is_file()
    Tokens.open(tmp_path / "data")


# --- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("train",),
        ("prepare", "x"),
        ("prepare", "x", "--output", "y", "--block-size", "many"),
        ("eval", "run", "--no-such-option"),
        ("generate", "run"),
    ],
)
def test_wrong_usage_ends_in_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments, status=2)
    assert result.out == ""
    assert "Usage" in result.err


def test_no_verb_shows_the_help(cli: Cli) -> None:
    result = cli(status=2)
    assert "Usage" in result.out + result.err


# --- bad input --------------------------------------------------------------------------------------------------------

PREPARE = ("--vocab-size", VOCAB, "--block-size", BLOCK, "--output", "out")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_prepare_refuses(cli: Cli, here: Path, workshop: Workshop) -> None:
    (here / "empty").mkdir()
    (here / "empty.txt").write_text("")
    (here / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (here / "binary.txt").write_bytes(bytes(range(256)) * 50)
    (here / "broken.jsonl").write_text('{"text": "fine"}\n{"text": "torn\n')
    (here / "column.jsonl").write_text('{"body": "x", "title": "y"}\n')
    (here / "short.txt").write_text("a few words")
    before = files_in(here)
    cli.refuses("prepare", "missing.txt", *PREPARE, says="missing.txt does not exist")
    cli.refuses("prepare", "empty", *PREPARE, says="empty")
    cli.refuses("prepare", "empty.txt", *PREPARE, says="")
    cli.refuses("prepare", "image.png", *PREPARE, says="image.png")
    cli.refuses("prepare", "binary.txt", *PREPARE, says="binary.txt")
    cli.refuses("prepare", "broken.jsonl", *PREPARE, says="broken.jsonl:2")
    assert "title" in cli.refuses("prepare", "column.jsonl", *PREPARE, says="body")
    cli.refuses("prepare", "short.txt", "empty.txt", *PREPARE, says="")
    cli.refuses("prepare", workshop.corpus, "--vocab-size", VOCAB, "--block-size", 10**6, "-o", "out", says="block")
    cli.refuses("prepare", workshop.corpus, "--output", "out", says="--tokenizer")
    cli.refuses("prepare", workshop.corpus, *PREPARE, "--tokenizer", "x", says="both")
    cli.refuses("prepare", workshop.corpus, "--vocab-size", VOCAB, "--block-size", 1, "-o", "out", says="block_size")
    cli.refuses("prepare", workshop.corpus, "--tokenizer", "./nowhere", "-o", "out", says="nowhere")
    cli.refuses("prepare", workshop.corpus, *PREPARE[:-1], "empty.txt", says="empty.txt already exists")
    cli.refuses("prepare", workshop.corpus, *PREPARE[:-1], "empty.txt/below", says="cannot write")
    assert files_in(here) == before


def test_invalid_utf8_is_counted(cli: Cli, here: Path, workshop: Workshop) -> None:
    shutil.copytree(workshop.corpus, here / "corpus")
    (here / "corpus" / "bad.txt").write_bytes(b"caf\xe9 and " * 5 + b"more text to read\n" * 20)
    result = cli("prepare", "corpus", *PREPARE, "--validation-fraction", 0.2, "--json")
    assert json.loads(result.out)["invalid_utf8"] == 5
    assert "5 characters that were not UTF-8" in result.err


def test_distill_and_train_on_it(cli: Cli, here: Path, workshop: Workshop) -> None:
    source = (workshop.data, "--teacher", workshop.teacher)
    manifest = json.loads(cli("distill", *source, "--top-k", 4, "--dtype", "bfloat16", "-o", "stored", "--json").out)
    assert manifest == read_json(here / "stored/manifest.json")
    assert (manifest["top_k"], manifest["dtype"]) == (4, "bfloat16")
    recipe = workshop.recipe_file(here / "r.yaml", "ntp", tokens=8 * BLOCK, distillation={"targets": "stored"})
    cli("train", recipe, "-o", "run", "-q")
    assert read_json(here / "run/manifest.json")["arm"] == "ntp, kd"
    before = files_in(here)
    cli.refuses("distill", *source, "--top-k", 100_000, "-o", "out", says="top_k=100000 must be between")
    cli.refuses("distill", *source, "-o", "stored", says="already exists")
    other = (prepare_toy(workshop.corpus, here / "other", vocab_size=280).path, "--teacher", workshop.teacher)
    cli.refuses("distill", *other, "--kind", "top_k", "-o", "out", says="another tokenizer than the data")
    assert files_in(here) - before == {"other"}
    cli.refuses("train", recipe, "--set", "objective=dream", says="objective: Input should be 'ntp' or 'cocomix'")


def test_a_pause_run_generates_and_has_no_concepts_to_look_at(cli: Cli, here: Path, workshop: Workshop) -> None:
    recipe = workshop.recipe_file(here / "r.yaml", "cocomix", tokens=8 * BLOCK, model={"mixing": "pause"}, labels=None)
    cli("train", recipe, "-o", "pause", "-q")
    assert "the" in cli("generate", "pause", "the", "--max-new-tokens", 2).out
    says = "has no concepts (mixing: pause, prediction: concepts); use a run that predicts them"
    cli.refuses("generate", "pause", "the", "--max-new-tokens", 2, "--steer", "1=5", says=says)
    cli.refuses("inspect", "pause", "the", says=says)
    cli.refuses("eval", "pause", "--labels", workshop.labels, says="no concepts to compare with labels")


def test_sae_and_label_refuse(cli: Cli, here: Path, workshop: Workshop) -> None:
    teacher = ("--teacher", workshop.teacher)
    wide = workshop.recipe_file(
        here / "wide.yaml", "ntp", model={"backbone": {"n_embd": 32}}, tokens=8 * BLOCK, name="wide"
    )
    cli("train", wide, "--output", "wide", "-q")
    cli("sae", workshop.data, *teacher, "--layer", 1, *SAE[:4], "--tokens", 16, "--batch-size", 16, "-o", "poor")
    corpus = write_corpus(here / "corpus", seed=4)
    other = prepare_toy(corpus, here / "other").path
    before = files_in(here)
    cli.refuses("sae", workshop.data, *teacher, "--layer", 3, *SAE, "-o", "out", says="layer")
    cli.refuses("sae", workshop.data, *teacher, "--layer", -1, *SAE, "-o", "out", says="layer")
    cli.refuses("sae", workshop.data, "--teacher", "./nowhere", "--layer", 1, *SAE, "-o", "out", says="nowhere")
    cli.refuses("sae", here / "corpus", *teacher, "--layer", 1, *SAE, "-o", "out", says="corpus")
    cli.refuses("sae", workshop.data, *teacher, "--layer", 1, "--k", 100, "--num-concepts", 50, "-o", "out", says="k")
    dictionary = ("--dictionary", workshop.dictionary)
    cli.refuses("label", workshop.data, "--teacher", "wide", *dictionary, "-o", "out", says="16")
    cli.refuses("distill", other, *teacher, "--kind", "top_k", "-o", "out", says="tokenizer")
    cli.refuses("label", workshop.data, *teacher, *dictionary, "--layer", 5, "-o", "out", says="layer")
    poor = ("--dictionary", "poor", "-o", "out")
    assert "FVU" in cli.refuses("label", workshop.data, *teacher, *poor, says="--force")
    cli.refuses("label", workshop.data, *teacher, "--dictionary", "nowhere", "--layer", 1, "-o", "out", says="nowhere")
    cli.refuses(
        "label", workshop.data, *teacher, "--dictionary", "nowhere", "-o", "out", says="no dictionary at nowhere"
    )
    cli.refuses("label", workshop.data, *teacher, "-o", "out", says="--dictionary")
    cli.refuses("label", workshop.data, *teacher, *dictionary, "--set", "k=none", "-o", "out", says="k")
    assert "nothing to do" in cli("label", workshop.data, *teacher, *dictionary, "-o", workshop.labels).err
    assert files_in(here) == before
    assert "warning" in cli("label", workshop.data, *teacher, *poor, "--force", "-q").err


def test_train_refuses(cli: Cli, here: Path, workshop: Workshop) -> None:
    recipe = workshop.recipe_file(here / "r.yaml", "cocomix")
    (here / "bad.yaml").write_text("a: [")
    before = files_in(here)
    cli.refuses("train", "nowhere.yaml", says="does not exist")
    cli.refuses("train", "bad.yaml", says="bad.yaml")
    cli.refuses("train", recipe, "--set", "tokenz=3", says="tokenz is not a known field")
    cli.refuses("train", recipe, "--set", "tokens", says="--set")
    cli.refuses("train", recipe, "--set", "model.insert_layer=3", says="insert_layer")
    cli.refuses("train", recipe, "--set", f"model.num_concepts={CONCEPTS // 2}", says="num_concepts")
    cli.refuses("train", recipe, "--set", "labels=nowhere", says="nowhere")
    cli.refuses("train", recipe, "--set", "training.learning_rat=3", says="learning_rat")
    cli.refuses("plan", recipe, "--set", "model.insert_layer=9", "--set", "model.num_concepts=48", says="insert_layer")
    cli.refuses("train", recipe, "--output", workshop.ntp_run, says="already exists")
    assert files_in(here) == before


def test_nan_loss_stops(cli: Cli, here: Path, workshop: Workshop) -> None:
    recipe = workshop.recipe_file(here / "r.yaml", "ntp", training={"save_steps": 1, "max_grad_norm": 0})
    sets = ("--set", "training.learning_rate=1e30", "--set", "training.optim=sgd", "--set", "training.warmup_steps=2")
    message = cli.refuses("train", recipe, "-o", "run", *sets, says="training stopped")
    assert "last good checkpoint is run.partial/checkpoints/checkpoint-" in message
    assert files_in(here) == {"r.yaml", "run.partial"}


def test_use_refuses(cli: Cli, here: Path, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = workshop.cocomix_run
    cli.refuses("eval", "nowhere", says="nowhere")
    cli.refuses("eval", workshop.data, says=str(workshop.data))
    cli.refuses("eval", workshop.ntp_run, "--labels", workshop.labels, says="no concepts")
    cli.refuses("generate", run, "the", "--steer", f"{CONCEPTS}=5", says=str(CONCEPTS))
    cli.refuses("generate", run, "the", "--steer", "-1=5", says="")
    cli.refuses("generate", run, "the", "--steer", "many", says="many")
    cli.refuses("generate", run, "the", "--steer", "1=much", says="1=much")
    cli.refuses("generate", run, " ", says="empty")
    cli.refuses("generate", run, "the", "--max-new-tokens", 1000, says="context")
    cli.refuses("generate", workshop.ntp_run, "the", "--max-new-tokens", 2, "--steer", "1=5", says="no concepts")
    cli.refuses("inspect", workshop.ntp_run, "the", says="no concepts")
    cli.refuses("compare", run, run, "-o", "report", says="")
    cli.refuses("compare", run, workshop.ntp_run, "--baseline", "nobody", "-o", "report", says="nobody")
    assert files_in(here) == set()


def test_data_that_moved_and_runs_that_differ(cli: Cli, here: Path, workshop: Workshop) -> None:
    shutil.copytree(workshop.data, here / "data")
    recipe = workshop.recipe_file(here / "r.yaml", "ntp", data=str(here / "data"), tokens=8 * BLOCK, name="moved")
    cli("train", recipe, "-o", "run", "-q")
    (here / "data").rename(here / "elsewhere")
    assert "--data" in cli.refuses("eval", "run", says="no longer at")
    cli("eval", "run", "--data", "elsewhere", "-q")
    short = prepare_toy(
        workshop.corpus, here / "short", block_size=8, vocab_size=None, tokenizer=str(workshop.data / "tokenizer")
    )
    other = workshop.recipe_file(here / "s.yaml", "ntp", data=str(short.path), tokens=64, name="short")
    cli("train", other, "-o", "other", "-q")
    cli.refuses("compare", "run", "other", "-o", "report", says="")
    assert not (here / "report").exists()


# --- interruptions ----------------------------------------------------------------------------------------------------

STAGES = {
    "prepare": "cocomix.data.units.UnitLog.append",
    "sae": "cocomix.concepts.fit._train",
    "label": "cocomix.labelling.map_shards._write_part",
    "distill": "cocomix.labelling.map_shards._write_part",
    "train": "cocomix.training.trainer.CoCoMixTrainer.compute_loss",
    "eval": "cocomix.evaluation.measure_run.concept_reliance",
    "compare": "cocomix.evaluation.report.write_text",
}


def command(verb: str, workshop: Workshop, here: Path) -> tuple[Any, ...]:
    if verb == "prepare":
        return ("prepare", workshop.corpus, *PREPARE, "--validation-fraction", 0.2)
    if verb == "sae":
        return ("sae", workshop.data, "--teacher", workshop.teacher, "--layer", 1, *SAE, "-o", "out")
    if verb == "label":
        source = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary)
        return ("label", workshop.data, *source, "-o", "out")
    if verb == "distill":
        return ("distill", workshop.data, "--teacher", workshop.teacher, "--top-k", 4, "-o", "out")
    if verb == "train":
        recipe = workshop.recipe_file(here / "r.yaml", "cocomix")
        return ("train", recipe, "-o", "out")
    if verb == "eval":
        if not (here / "run").exists():
            shutil.copytree(workshop.cocomix_run, here / "run")
        return ("eval", "run", "--limit-blocks", 4)
    return ("compare", workshop.cocomix_run, workshop.ntp_run, "-o", "out")


def fail_at(monkeypatch: pytest.MonkeyPatch, target: str, call: int, error: BaseException) -> None:
    module, _, name = target.rpartition(".")
    owner: Any
    try:
        owner = __import__(module, fromlist=[name])
    except ModuleNotFoundError:
        package, _, kind = module.rpartition(".")
        owner = getattr(__import__(package, fromlist=[kind]), kind)
    original, calls = getattr(owner, name), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("verb", STAGES)
@pytest.mark.parametrize("kind", ["ctrl-c", "disk"])
def test_stopped_in_the_middle(cli: Cli, here: Path, workshop: Workshop, verb: str, kind: str) -> None:
    arguments = command(verb, workshop, here)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    error = KeyboardInterrupt() if kind == "ctrl-c" else OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patched:
        fail_at(patched, STAGES[verb], 3 if verb in ("label", "distill", "train") else 1, error)
        result = cli(*arguments, status=130 if kind == "ctrl-c" else 1)
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert ("Ctrl-C" if kind == "ctrl-c" else "No space left on device") in last
    left = {path for path in here.rglob("*") if "out.partial" not in path.parts}
    assert left == set(before)
    assert not [path for path in here.rglob("*") if path.suffix == ".tmp"]
    cli(*arguments)
    assert not (here / "out.partial").exists()
    if verb != "eval":
        assert (here / "out").is_dir()


def test_the_disk_fills_while_a_model_is_saved(
    cli: Cli, here: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors and torch.save do not raise OSError."""
    from safetensors import SafetensorError

    recipe = workshop.recipe_file(here / "r.yaml", "ntp")
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    torch_full = "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"
    for target, error in (
        ("transformers.modeling_utils.safe_save_file", SafetensorError(full)),
        ("torch.save", RuntimeError(torch_full)),
    ):
        with pytest.MonkeyPatch.context() as patched:
            fail_at(patched, target, 1, error)
            cli.refuses("train", recipe, "-o", "run", says="make room")
        assert files_in(here) == {"r.yaml", "run.partial"}
    cli("train", recipe, "-o", "run", "-q")
    with pytest.MonkeyPatch.context() as patched:
        fail_at(patched, "sae_lens.saes.sae.save_file", 1, SafetensorError(full))
        cli.refuses(*command("sae", workshop, here), says="make room")
    assert files_in(here) == {"r.yaml", "run"}


def test_programming_errors_are_not_hidden(cli: Cli, here: Path, workshop: Workshop) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["cocomix", *map(str, command("prepare", workshop, here))])
        fail_at(patched, STAGES["prepare"], 1, RuntimeError("a bug"))
        with pytest.raises(RuntimeError, match="a bug"):
            cocomix.cli.main()
    assert files_in(here) <= {"out.partial"}  # the units that were whole
