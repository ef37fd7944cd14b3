"""`data: {mixture: …}`: several corpora in given shares."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cocomix.artifacts import read_json
from cocomix.concepts import AttributionConfig, DictionaryConfig, TeacherConfig
from cocomix.data import TRAIN, VALIDATION, MixedData, Tokens
from cocomix.evaluation import Run, evaluate_run
from cocomix.evaluation.teacher_flops import teacher_flops
from cocomix.labelling import Concatenated, Labels, TeacherProbabilities, distill_data, label_data
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.corpora import block_order
from cocomix.training.loading import joined_blocks
from cocomix.training.recipe import RunConfig
from tests.workshop import BLOCK, Workshop, prepare_toy, write_corpus


@pytest.fixture(scope="module")
def other(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second corpus, of the first one's tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    corpus = write_corpus(folder / "corpus", documents=20, seed=7)
    return prepare_toy(corpus, folder / "data", tokenizer=str(workshop.data / "tokenizer"), vocab_size=None).path


@pytest.fixture(scope="module")
def other_labels(workshop: Workshop, other: Path) -> Path:
    output = other.parent / "labels"
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    label_data(
        other, AttributionConfig(teacher=source, dictionary=DictionaryConfig(path=str(workshop.dictionary))), output
    )
    return output


def mixed(workshop: Workshop, other: Path, labels: Path | None = None, **changes: Any) -> Any:
    first: dict[str, Any] = {"path": str(workshop.data), "weight": 3}
    second: dict[str, Any] = {"path": str(other), "weight": 1}
    if labels is not None:
        first["labels"], second["labels"] = str(workshop.labels), str(labels)
    values = workshop.values("cocomix" if labels else "ntp", **changes)
    values.pop("labels", None)
    return {**values, "data": {"mixture": [first, second]}}


def recipe(*args: Any, **changes: Any) -> Any:

    return RunConfig.model_validate(mixed(*args, **changes))


def test_blocks_are_numbered_through(workshop: Workshop, other: Path) -> None:
    parts = [Tokens.open(workshop.data), Tokens.open(other)]
    data = MixedData(parts, [3, 1])
    for split in (TRAIN, VALIDATION):
        rows = [row["input_ids"] for part in parts for row in part.split(split)]
        assert len(data.split(split)) == len(rows) == data.manifest.splits[split].blocks
        assert all(torch.equal(row, found["input_ids"]) for row, found in zip(rows, data.split(split), strict=True))
    assert data.shares == (0.75, 0.25)
    assert data.manifest.fingerprint not in (part.manifest.fingerprint for part in parts)
    assert data.manifest.fingerprint != MixedData(parts, [1, 1]).manifest.fingerprint
    assert data.manifest.fingerprint == MixedData(parts, [0.75, 0.25]).manifest.fingerprint
    first = len(parts[0].split(VALIDATION))
    assert data.first_blocks(VALIDATION, 8) == [0, 1, 2, 3, 4, 5, first, first + 1]


def test_a_run_on_a_mixture(
    workshop: Workshop, other: Path, other_labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cocomix")
    settings = recipe(workshop, other, other_labels, name="mixed", evaluation_blocks=None)
    run = train(settings, tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    parts = manifest["data"]["mixture"]
    assert [part["share"] for part in parts] == [0.75, 0.25]
    assert sum(part["blocks"] for part in parts) == manifest["tokens"] // BLOCK == 96
    assert parts[0]["blocks"] == pytest.approx(72, abs=15)
    assert f"{other}: {parts[1]['blocks'] / 96:.2%} of the training tokens, 25.00% asked for" in caplog.messages
    data = MixedData([Tokens.open(workshop.data), Tokens.open(other)], [3, 1])
    order = block_order(settings, data, manifest["seed"])
    assert order is not None
    drawn = order.blocks(0, 0, 96)
    assert parts[0]["blocks"] == int((drawn < len(data.parts[0].split(TRAIN))).sum())
    result = evaluate_run(Run.open(run), device=torch.device("cpu"), reliance=False)
    assert result.loss == pytest.approx(manifest["final"]["eval_loss"], rel=1e-4)
    opened, made = Run.open(run), [Labels.open(folder).manifest for folder in (workshop.labels, other_labels)]
    counted = sum(min(part["blocks"], labels.blocks(TRAIN)) for part, labels in zip(parts, made, strict=True))
    assert teacher_flops(opened) == pytest.approx(made[0].flops_per_token * counted * BLOCK)
    assert opened.manifest.data.mixture is not None
    all_of_it = tuple(part.model_copy(update={"blocks": 10**6}) for part in opened.manifest.data.mixture)
    longer = {"tokens": 10**9, "data": opened.manifest.data.model_copy(update={"mixture": all_of_it})}
    assert opened.manifest.labels is not None
    assert opened.manifest.labels.tokens == tuple(part["blocks"] * BLOCK for part in parts)
    longer["labels"] = opened.manifest.labels.model_copy(update={"tokens": (10**9, 10**9)})
    opened.manifest = opened.manifest.model_copy(update=longer)
    counted = sum(labels.tokens(TRAIN) for labels in made)
    assert teacher_flops(opened) == pytest.approx(made[0].flops_per_token * counted)


def test_labels_stay_with_their_blocks(workshop: Workshop, other: Path, other_labels: Path) -> None:
    settings = recipe(workshop, other, other_labels)
    data = MixedData([Tokens.open(workshop.data), Tokens.open(other)], [3, 1])
    stores = [Labels.open(workshop.labels), Labels.open(other_labels)]
    rows = joined_blocks(settings, data, {"concept_labels": Concatenated(stores)}, TRAIN, None)
    first = len(data.parts[0].split(TRAIN))
    for part, store, start in ((data.parts[0], stores[0], 0), (data.parts[1], stores[1], first)):
        for index in (0, len(part.split(TRAIN)) - 1):
            assert torch.equal(rows[start + index]["input_ids"], part.split(TRAIN)[index]["input_ids"])
            assert torch.equal(rows[start + index]["concept_labels"], store.split(TRAIN)[index]["concept_labels"])


def test_corpora_that_do_not_fit_are_refused(workshop: Workshop, other: Path, tmp_path: Path) -> None:
    data = Tokens.open(workshop.data)
    corpus = write_corpus(tmp_path / "corpus", documents=10, seed=3)
    longer = prepare_toy(
        corpus, tmp_path / "b", tokenizer=str(workshop.data / "tokenizer"), vocab_size=None, block_size=8
    )
    with pytest.raises(CoCoMixError, match="block size"):
        MixedData([data, longer], [1, 1])
    with pytest.raises(CoCoMixError, match="tokenizer"):
        MixedData([data, prepare_toy(corpus, tmp_path / "c", vocab_size=280)], [1, 1])
    with pytest.raises(CoCoMixError, match=r"share below 1/10,000"):
        block_order(workshop.recipe("ntp"), MixedData([data, Tokens.open(other)], [1, 1e-6]), 0)


def test_labels_that_do_not_fit_are_refused(workshop: Workshop, other_labels: Path, tmp_path: Path) -> None:
    store = Labels.open(workshop.labels)
    made = Labels.open(other_labels).manifest
    changed = Labels(tmp_path, made.model_copy(update={"labeller": {**made.labeller, "dictionary": "0" * 64}}))
    with pytest.raises(CoCoMixError, match="dictionary"):
        Concatenated([store, changed])


def test_stored_probabilities_by_corpus(workshop: Workshop, other: Path, tmp_path: Path) -> None:
    """Read for two of three steps."""
    teacher = TeacherConfig(model=str(workshop.teacher), layer=1)
    distill_data(other, teacher, tmp_path / "stored", top_k=8)
    weight = {"shape": "stop", "value": 0.5, "until": 0.6}
    values = mixed(workshop, other, tokens=3 * 8 * BLOCK, distillation={"weight": weight})
    for corpus, targets in zip(values["data"]["mixture"], (workshop.probabilities, tmp_path / "stored"), strict=True):
        corpus["targets"] = str(targets)
    run = train(RunConfig.model_validate(values), tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kd_loss"] > 0
    parts = [TeacherProbabilities.open(workshop.probabilities), TeacherProbabilities.open(tmp_path / "stored")]
    joined = Concatenated(parts)
    assert read_json(run / "manifest.json")["teaching"]["fingerprint"] == joined.fingerprint
    data = MixedData([Tokens.open(workshop.data), Tokens.open(other)], [3, 1])
    drawn = block_order(RunConfig.model_validate(values), data, Run.open(run).manifest.seed).blocks(0, 0, 2 * 8)
    of_first = int((drawn < len(data.parts[0].split(TRAIN))).sum())
    read = zip(parts, (of_first, 2 * 8 - of_first), strict=True)
    expected = sum(part.manifest.flops_per_token * blocks * BLOCK for part, blocks in read)
    assert teacher_flops(Run.open(run)) == pytest.approx(expected)
    blocks, last = joined.split(TRAIN), len(parts[0].split(TRAIN)) + 2
    assert torch.equal(blocks[last]["teacher_ids"], parts[1].split(TRAIN)[2]["teacher_ids"])
    distill_data(other, teacher, tmp_path / "fewer", top_k=4)
    with pytest.raises(CoCoMixError, match="number of probabilities"):
        Concatenated([parts[0], TeacherProbabilities.open(tmp_path / "fewer")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "somewhere"}, "a folder belongs to one corpus"),
        ({"distillation": {"targets": "somewhere"}}, "give every corpus its targets"),
        ({"data": {"mixture": []}}, "at least 1 item"),
        ({"data": {"mixture": [{"path": "a", "weight": 0}]}}, "greater than 0"),
        ({"data": {"mixture": [{"path": "a", "weight": 1, "labels": "b"}, {"path": "c", "weight": 1}]}}, "or to none"),
    ],
)
def test_recipes_that_make_no_sense(workshop: Workshop, other: Path, change: dict[str, Any], message: str) -> None:

    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({**mixed(workshop, other), **change})
