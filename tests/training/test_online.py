"""Labels made while training are those that `cocomix label` would have written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cocomix.artifacts import file_sha256, read_json
from cocomix.concepts import (
    Agreement,
    AttributionConfig,
    AttributionLabeller,
    ConceptDictionary,
    ConceptTeacher,
    DictionaryFit,
    determining,
    load_teacher,
)
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.callbacks import MetricsFile
from cocomix.training.online import OnlineLabels, open_online_labels
from cocomix.training.recipe import RunConfig, load_recipe
from tests.many.launches import launched
from tests.workshop import BLOCK, CONCEPTS, Workshop, prepare_toy

# More than one epoch of 289 blocks in steps of 4 micro-batches, with dropout, so that any extra random draw shows.
LONG = {
    "tokens": None,
    "model": {"backbone": {"resid_pdrop": 0.2, "embd_pdrop": 0.2}},
    "training": {"max_steps": 12, "gradient_accumulation_steps": 4, "save_steps": 4},
}


class Killed(Exception):
    pass


def online(workshop: Workshop, **changes: Any) -> dict[str, Any]:
    return {"labels": made(workshop), **changes}


def made(workshop: Workshop, kind: str = "attribution", **settings: Any) -> dict[str, Any]:
    teacher, dictionary = {"model": str(workshop.teacher), "layer": 1}, {"path": str(workshop.dictionary)}
    return {"path": None, "kind": kind, "teacher": teacher, "dictionary": dictionary, **settings}


def recipe(workshop: Workshop, **changes: Any) -> RunConfig:
    return workshop.recipe("cocomix", name="run", **{**LONG, **changes})


def curve(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def cached(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(workshop), tmp_path_factory.mktemp("cached") / "run")


@pytest.fixture
def labels(workshop: Workshop) -> OnlineLabels:
    dictionary = ConceptDictionary.from_sae_lens(workshop.dictionary)
    labeller = AttributionLabeller(ConceptTeacher(load_teacher(workshop.teacher), dictionary, 1))
    return OnlineLabels(labeller, AttributionConfig(), torch.device("cpu"))


@pytest.mark.parametrize("ahead", [False, True])
def test_stopped_and_resumed_it_equals_the_run_on_stored_labels(
    workshop: Workshop,
    cached: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ahead: bool,
) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            raise Killed

    original = OnlineLabels.__init__

    def with_ahead(self: OnlineLabels, *arguments: Any) -> None:
        original(self, *arguments)
        self.ahead = ahead

    monkeypatch.setattr(OnlineLabels, "__init__", with_ahead)
    wanted = recipe(workshop, **online(workshop))
    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_end", stop, raising=False)
        with pytest.raises(Killed):
            train(wanted, tmp_path / "run")
    assert "made again in every epoch" in caplog.text
    run = train(wanted, tmp_path / "run")
    assert curve(run) == curve(cached)
    assert file_sha256(run / "model.safetensors") == file_sha256(cached / "model.safetensors")


def test_what_the_run_folder_says(workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(workshop.recipe("cocomix", **online(workshop, tokens=3 * 8 * BLOCK)), tmp_path / "run")
    assert caplog.messages == []
    stored = Labels.open(workshop.labels).manifest
    manifest = Run.open(run).manifest
    assert manifest.labels is None
    assert manifest.online_labels is not None
    assert manifest.online_labels.labels == {**stored.labels}
    assert manifest.online_labels.labeller == determining(stored.labeller)
    names = load_file(run / "model.safetensors").keys()
    expected = load_file(workshop.cocomix_run / "model.safetensors").keys()
    assert names == expected  # nothing of the teacher
    assert load_recipe(run / "recipe.yaml").online_labels is not None
    assert read_json(run / "manifest.json")["seconds"] > 0


def test_a_teacher_of_another_tokenizer_labels_by_bytes(workshop: Workshop, tmp_path: Path) -> None:
    other = prepare_toy(workshop.corpus, tmp_path / "other", vocab_size=280)
    wanted = workshop.recipe("cocomix", data=str(other.path), labels=made(workshop), tokens=2 * 8 * BLOCK)
    manifest = Run.open(train(wanted, tmp_path / "run")).manifest
    assert manifest.online_labels is not None
    fingerprints = {"student": other.manifest.tokenizer_fingerprint}
    fingerprints["teacher"] = Tokens.open(workshop.data).manifest.tokenizer_fingerprint
    found = manifest.online_labels.labeller
    assert {name: found[f"{name}_tokenizer"] for name in fingerprints} == fingerprints
    assert (manifest.final.eval_concept_loss or 0) > 0


def test_labels_of_batches_and_blocks_are_the_stored_ones(workshop: Workshop, labels: OnlineLabels) -> None:
    blocks = Tokens.open(workshop.data).split("validation")
    stored = Labels.open(workshop.labels).split("validation")
    expected = torch.stack([stored[index]["concept_labels"] for index in range(len(blocks))])
    found = labels.blocks(blocks)
    assert len(found) == len(blocks)
    assert labels.num_concepts == CONCEPTS
    assert torch.equal(torch.stack([found[index]["concept_labels"] for index in range(len(found))]).long(), expected)
    with torch.inference_mode():  # evaluation's
        tokens = torch.stack([blocks[index]["input_ids"] for index in range(3)])
        assert torch.equal(labels.label(tokens), expected[:3])


@pytest.mark.parametrize("depth", [1, 3])
def test_labelling_ahead_keeps_batches_in_order_and_ends_with_them(
    workshop: Workshop, labels: OnlineLabels, depth: int
) -> None:
    blocks = Tokens.open(workshop.data).split("train")
    batches = [{"input_ids": torch.stack([blocks[index]["input_ids"]] * 2)} for index in range(5)]
    inline = list(labels.labelled(batches, depth))
    labels.ahead = True
    taken = []

    def watched() -> Any:
        for number, batch in enumerate(batches):
            taken.append(number)
            yield batch

    found = []
    for batch in labels.labelled(watched(), depth):
        found.append(batch)
        assert len(taken) == min(len(found) + depth, 5)
    assert len(found) == 5
    for batch, twin in zip(found, inline, strict=True):
        assert torch.equal(batch["input_ids"], twin["input_ids"])
        assert torch.equal(batch["concept_labels"], twin["concept_labels"])


def test_padded_rows_are_labelled_as_without_padding(workshop: Workshop, labels: OnlineLabels) -> None:
    row = Tokens.open(workshop.data).split("train")[0]["input_ids"][None]
    padded = torch.cat((row, torch.zeros_like(row)), dim=1)
    mask = torch.cat((torch.ones_like(row), torch.zeros_like(row)), dim=1)
    (batch,) = labels.labelled([{"input_ids": padded, "attention_mask": mask}], 1)
    assert torch.equal(batch["concept_labels"][:, :BLOCK], labels.label(row))
    assert bool((batch["concept_labels"][:, BLOCK:] == -100).all())


def test_rows_that_stand_in_for_none_get_no_labels(workshop: Workshop, labels: OnlineLabels) -> None:
    ids = torch.stack([Tokens.open(workshop.data).split("train")[index]["input_ids"] for index in range(2)])
    targets = ids.clone()
    targets[1] = -100
    (batch,) = labels.labelled([{"input_ids": ids, "labels": targets}], 1)
    assert torch.equal(batch["concept_labels"][:1], labels.label(ids[:1]))
    assert bool((batch["concept_labels"][1] == -100).all())


def test_a_dictionary_that_does_not_fit_and_a_dtype_that_changes_labels_are_refused(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = DictionaryFit(fvu=0.9, ce_clean=1.0, ce_dictionary=2.0, ce_zero=3.0, positions=64)
    with monkeypatch.context() as patched:
        patched.setattr("cocomix.concepts.check.measure_fit", lambda *arguments: poor)
        with pytest.raises(CoCoMixError, match=r"block 1.*FVU 0\.900"):
            train(recipe(workshop, **online(workshop)), tmp_path / "run")
    monkeypatch.setattr("cocomix.concepts.check.measure_agreement", lambda *arguments: Agreement(0.4, 0.5))
    with pytest.raises(CoCoMixError, match=r"bfloat16 .*50\.0%"):
        train(recipe(workshop, labels=made(workshop, dtype="bfloat16")), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_teacher_runs_in_bfloat16_where_the_run_does(workshop: Workshop, tmp_path: Path) -> None:
    """Unless its format is given; then a narrow one is tried like any other."""
    data = Tokens.open(workshop.data)
    for bf16, given, found in (
        (True, {}, "bfloat16"),
        (False, {}, "float32"),
        (True, {"dtype": "float32"}, "float32"),
    ):
        config = recipe(workshop, labels=made(workshop, "activation", **given)).online_labels
        assert config is not None
        online_labels = open_online_labels(config, data, torch.device("cpu"), tmp_path, bf16=bf16)
        assert online_labels.labeller.dtype == found


@pytest.mark.slow
def test_two_processes_label_their_own_rows(workshop: Workshop, tmp_path: Path) -> None:
    # An epoch is 289 blocks: its third step has one block, so that one of two processes has none.
    training = {"optim": "sgd", "logging_steps": 1, "per_device_train_batch_size": 144}
    changes = {"name": "run", "tokens": 289 * BLOCK, "training": training}
    one = train(workshop.recipe("cocomix", **changes), tmp_path / "one")
    training["per_device_train_batch_size"] = 72
    file = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", **online(workshop, **changes))
    launched(["train", file, "--output", tmp_path / "two"], 2)
    for row, twin in zip(curve(tmp_path / "two"), curve(one), strict=True):
        assert row["tokens"] == twin["tokens"]
        for name in row.keys() & {"ntp_loss", "concept_loss", "eval_loss", "eval_concept_loss"}:
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name
