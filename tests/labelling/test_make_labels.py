"""`cocomix label` and `distill` with a trained teacher and its dictionary."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cocomix.artifacts import MadeFromSomethingElse
from cocomix.concepts import Agreement, FitSettings, TeacherConfig, labeller_config
from cocomix.data import Tokens
from cocomix.labelling import (
    Concatenated,
    Labels,
    TeacherProbabilities,
    check_tokenizer,
    distill_data,
    fit_on_data,
    label_data,
    open_labeller,
)
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import train
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop, of_an_earlier_algorithm, prepare_toy


def label(
    workshop: Workshop, output: Path, data: Path | None = None, *, force: bool = False, **settings: Any
) -> Labels:
    source = {"model": str(workshop.teacher), "layer": 1}
    values = {"kind": "attribution", "teacher": source, "dictionary": {"path": str(workshop.dictionary)}, **settings}
    found = label_data(data or workshop.data, labeller_config(values), output, force=force)
    assert found is not None
    return found


def test_labels_cover_the_data(workshop: Workshop) -> None:
    data, labels = Tokens.open(workshop.data), Labels.open(workshop.labels)
    manifest = labels.manifest
    assert manifest.made_from["tokens"] == data.manifest.fingerprint
    assert (manifest.num_concepts, manifest.labels["teacher"]["layer"]) == (CONCEPTS, 1)
    assert manifest.labels["teacher"]["model"] == str(workshop.teacher)
    assert manifest.labels["dictionary"]["path"] == str(workshop.dictionary)
    assert manifest.agreement_with_float32 is None
    for name, meta in data.manifest.splits.items():
        split = labels.split(name)
        assert len(split) == meta.blocks
        rows = torch.stack([split[index]["concept_labels"] for index in range(len(split))])
        assert rows.shape == (meta.blocks, BLOCK, 4)
        assert (rows[:, -1] == -100).all()  # no next token, no label
        assert (rows[:, :-1, 0] >= 0).float().mean() > 0.8
        assert int(rows.max()) < CONCEPTS


def test_a_control_of_the_current_token_is_labelled_with_too(workshop: Workshop, tmp_path: Path) -> None:
    found = label(workshop, tmp_path / "labels", kind="token_lookup", sample_tokens=1000)
    assert found.tables().keys() == {"ids", "means"}
    tokens, blocks = Tokens.open(workshop.data).split("train"), found.split("train")
    seen: dict[int, list[int]] = {}
    for index in range(len(blocks)):
        labels = blocks[index]["concept_labels"].tolist()[:-1]
        for token, ids in zip(tokens[index]["input_ids"].tolist()[:-1], labels, strict=True):
            assert seen.setdefault(token, ids) == ids


@pytest.mark.parametrize("settings", [{"kind": "contextual"}, {"centre_by_token": True}])
def test_centred_labels_are_made_by_a_finished_command_and_by_workers(
    workshop: Workshop, tmp_path: Path, settings: dict[str, Any], cli: Cli
) -> None:
    found = label(workshop, tmp_path / "labels", sample_tokens=1000, **settings)
    assert found.tables().keys() == {"keys", "means"}
    assert found.manifest.content is not None
    options = ["--kind", "contextual"] if "kind" in settings else ["--set", "centre_by_token=true"]
    command = ("label", workshop.data, *sources(workshop), "--set", "sample_tokens=1000", *options)
    cli(*command, "--workers", "2", "-o", tmp_path / "again")
    assert Labels.open(tmp_path / "again").manifest.labeller == found.manifest.labeller
    assert Labels.open(tmp_path / "again").fingerprint == found.fingerprint


def test_a_narrow_dtype_is_measured_told_and_refused_below_the_limit(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = label(workshop, tmp_path / "labels", dtype="float16").manifest
    assert manifest.agreement_with_float32 is not None
    assert 0.9 < manifest.agreement_with_float32 <= 1
    assert manifest.score_kept_of_float32 == pytest.approx(1, abs=0.001)
    monkeypatch.setattr("cocomix.concepts.check.measure_agreement", lambda *arguments: Agreement(0.97, 0.98))
    with pytest.raises(CoCoMixError, match=r"98\.0%"):
        label(workshop, tmp_path / "refused", dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"labels"}


@pytest.mark.parametrize("fast", [False, True])
def test_dtype_auto_is_chosen_by_the_machine_and_recorded(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("cocomix.runtime.device.fast_bfloat16", lambda device: fast)
    manifest = label(workshop, tmp_path / "labels", dtype="auto", force=True).manifest
    chosen = "bfloat16" if fast else "float32"
    assert (manifest.labels["dtype"], manifest.labeller["dtype"]) == (chosen, chosen)
    assert (manifest.score_kept_of_float32 is not None) == fast


@pytest.mark.parametrize("kind", ["attribution", "contextual"])
def test_a_teacher_of_another_tokenizer_labels_by_bytes(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280)
    found = label(workshop, tmp_path / "labels", other.path, force=True, kind=kind)
    made = found.manifest.labeller
    assert made["student_tokenizer"] == other.manifest.tokenizer_fingerprint
    assert made["teacher_tokenizer"] == Tokens.open(workshop.data).manifest.tokenizer_fingerprint
    config = labeller_config(found.manifest.labels)
    labeller, _ = open_labeller(other, config, tables=found.tables(), force=True)
    blocks = torch.stack([other.split("train")[index]["input_ids"] for index in range(4)])
    stored = torch.stack([found.split("train")[index]["concept_labels"] for index in range(4)])
    assert torch.equal(labeller.label(blocks, k=config.k).ids, stored)
    assert 0.5 < (stored != IGNORE).any(dim=-1).float().mean() < 1


def test_other_tokenizer_wrong_layer_and_width_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280).path
    with pytest.raises(CoCoMixError, match="first_token"):
        distill_data(other, TeacherConfig(model=str(workshop.teacher), layer=1), tmp_path / "labels", kind="top_k")
    wide = train(workshop.recipe("ntp", model={"backbone": {"n_embd": 32}}, tokens=128), tmp_path / "wide")
    with pytest.raises(CoCoMixError, match="16"):
        label(workshop, tmp_path / "labels", teacher={"model": str(wide), "layer": 1})
    with pytest.raises(CoCoMixError, match="layer"):
        label(workshop, tmp_path / "labels", teacher={"model": str(workshop.teacher), "layer": 3})
    assert not (tmp_path / "labels").exists()


def test_a_dictionary_is_fitted_on_the_teachers_tokens_of_the_same_text(workshop: Workshop, tmp_path: Path) -> None:
    teacher = TeacherConfig(model=str(workshop.teacher), layer=1)
    settings = FitSettings(num_concepts=64, k=8, tokens=40_000, batch_size=512)
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280).path
    fits = [
        fit_on_data(data, teacher, tmp_path / f"{name}_sae", settings).manifest.report.fit
        for name, data in (("same", workshop.data), ("other", other))
    ]
    assert fits[1].fvu == pytest.approx(fits[0].fvu, abs=0.1)
    begun = prepare_toy(workshop.corpus, tmp_path / "begun", vocab_size=280, prepend_bos=True).path
    with pytest.raises(CoCoMixError, match="--prepend-bos"):
        fit_on_data(begun, teacher, tmp_path / "sae", settings)


def test_a_teacher_without_a_tokenizer_is_checked_by_its_size(workshop: Workshop, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(workshop.teacher / name, bare / name)
    settings = FitSettings(num_concepts=32, k=4, tokens=512, batch_size=256)
    dictionary = fit_on_data(workshop.data, TeacherConfig(model=str(bare), layer=1), tmp_path / "sae", settings)
    assert dictionary.manifest.kind == "dictionary"


@pytest.mark.parametrize(
    ("rows", "accepted"),
    [(50_257, True), (50_304, True), (51_200, True), (50_256, False), (52_000, False), (128_256, False)],
)
def test_embeddings_may_be_padded_but_not_be_another_vocabularys(rows: int, accepted: bool) -> None:
    model: Any = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(rows, 1, device="meta"))
    tokens: Any = SimpleNamespace(manifest=SimpleNamespace(vocab_size=50_257))
    with nullcontext() if accepted else pytest.raises(CoCoMixError, match=f"{rows} rows .* 50257 tokens"):
        check_tokenizer(model, None, tokens)


# --- the command line -------------------------------------------------------------------------------------------------


def sources(workshop: Workshop) -> tuple[Any, ...]:
    return ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary)


def test_the_command_makes_the_labels_of_the_function(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    command = ("label", workshop.data, *sources(workshop), "-o", tmp_path / "labels")
    for number in range(2):
        found = json.loads(cli(*command, "--shard", f"{number}/2", "--unit-tokens", 1, "--json").out)
    assert found["fingerprint"] == Labels.open(workshop.labels).fingerprint
    cli("label", workshop.data, "-o", tmp_path / "labels", "--finish")
    cli.refuses(*command, "--finish", "--shard", "0/2", says="--finish")
    cli.refuses(*command[:-1], tmp_path / "other", "--workers", "0", says="--workers 0")
    cli.refuses(*command[:-1], tmp_path / "other", "--workers", "1:2", says="--engine ray")
    cli.refuses(*command[:-1], tmp_path / "other", "--address", "auto", says="--engine ray")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("verb", ["label", "distill"])
def test_a_finished_command_given_again_answers_at_once(
    workshop: Workshop, tmp_path: Path, cli: Cli, verb: str
) -> None:
    """After 11.8 s of loading it said that the output exists, exit status 1."""
    source = sources(workshop) if verb == "label" else ("--teacher", workshop.teacher, "--top-k", 4)
    command = (verb, workshop.data, *source, "-o", tmp_path / "out")
    made = cli(*command, "--json")
    first = json.loads(made.out)
    assert first["asked"]
    assert "tokens/s" in made.err
    script = (
        "import sys, cocomix.cli as cli\n"
        f"sys.argv = ['cocomix', *{[str(argument) for argument in command]!r}]\n"
        "try:\n    cli.main()\nfinally:\n    print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert done.stdout.endswith("[]\n")  # none of them was imported
    other = ("--set", "sign=abs") if verb == "label" else ("--top-k", 5)
    cli.refuses(*command, *other, says="labels.sign" if verb == "label" else "top_k")
    kind = Labels if verb == "label" else TeacherProbabilities
    assert kind.open(tmp_path / "out").fingerprint == first["fingerprint"]


def test_what_a_teacher_or_dictionary_made_is_not_taken_for_what_another_in_its_place_would_make(
    workshop: Workshop, tmp_path: Path, cli: Cli
) -> None:
    """`cocomix train` said that a dictionary had changed and to label again, which found that nothing was to do."""
    teacher, dictionary = (tmp_path / name for name in ("teacher", "sae"))
    shutil.copytree(workshop.teacher, teacher)
    source = ("--teacher", teacher, "--layer", 1)
    fit = ("sae", workshop.data, *source, "--num-concepts", 40, "--tokens", 512, "--batch-size", 32, "-o", dictionary)
    cli(*fit, "--k", 4)
    made = ("label", workshop.data, *source, "--dictionary", dictionary, "--force", "-o", tmp_path / "labels")
    distilled = ("distill", workshop.data, "--teacher", teacher, "--top-k", 4, "-o", tmp_path / "targets")
    for command in (made, distilled):
        cli(*command)
    shutil.rmtree(dictionary)
    cli(*fit, "--k", 6)
    cli.refuses(*made, says="dictionary")
    settings = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(settings, indent=4))  # other files, the same weights
    for command in ((*fit, "--k", 6), distilled):
        assert "nothing to do" in cli(*command).err
    shutil.rmtree(teacher)
    train(workshop.recipe("ntp", tokens=8 * BLOCK), teacher)
    for command in ((*fit, "--k", 6), distilled):
        cli.refuses(*command, says="teacher")
    shutil.rmtree(teacher)
    assert "nothing to do" in cli(*fit, "--k", 6).err


def test_first_tokens_of_an_earlier_algorithm_are_not_taken_for_those_of_this_one(
    workshop: Workshop, tmp_path: Path, cli: Cli
) -> None:
    data = prepare_toy(workshop.corpus, tmp_path / "data", vocab_size=280).path
    command = ("distill", data, "--teacher", workshop.teacher, "--top-k", 4, "-o")
    for name in ("new", "old"):
        cli(*command, tmp_path / name)
    of_an_earlier_algorithm(tmp_path / "old")
    cli(*command, tmp_path / "new")
    cli.refuses(*command, tmp_path / "old", says="algorithm")
    with pytest.raises(MadeFromSomethingElse) as caught:
        Concatenated([TeacherProbabilities.open(tmp_path / name) for name in ("new", "old")])
    assert caught.value.keys == ("algorithm",)


def test_scores_are_kept_as_asked(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    cli("label", workshop.data, *sources(workshop), "--scores", "none", "-o", tmp_path / "none")
    cli("label", workshop.data, *sources(workshop), "--scores", "float32", "-o", tmp_path / "wide")
    none, wide, default = (Labels.open(path) for path in (tmp_path / "none", tmp_path / "wide", workshop.labels))
    assert [labels.manifest.scores for labels in (none, wide, default)] == ["none", "float32", "float16"]
    assert not list(none.path.glob("*.scores.npy"))
    assert torch.equal(none.split("train")[0]["concept_labels"], default.split("train")[0]["concept_labels"])
