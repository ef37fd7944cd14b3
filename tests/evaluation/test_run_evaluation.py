import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from cocomix.evaluation.perplexity import evaluate
from cocomix.evaluation.run_evaluation import evaluate_run, reliance_of_runs
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run
from tests.evaluation.conftest import cocomix_model
from tests.evaluation.small_world import World, build_world
from tests.workshop import Workshop

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def trained(world, write_run):
    """Write a run folder with a model, tied to the world's data and labels."""

    def write(name, model, with_labels=True, **changes):
        meta = world.data.manifest
        data = {
            "path": str(world.data.path),
            "fingerprint": meta.fingerprint,
            "tokenizer_fingerprint": meta.tokenizer_fingerprint,
            "block_size": meta.block_size,
        }
        labels = {"path": str(world.labels.path), "fingerprint": world.labels.manifest.fingerprint}
        settings = {"data": data, "labels": labels if with_labels else None, **changes}
        path = write_run(name, [5.0], **settings)
        model.save_pretrained(path)
        world.tokenizer.save_pretrained(path)
        return Run.open(path)

    return write


def test_a_cocomix_run_is_measured_whole_and_written(world, trained):
    model = world.student()
    run = trained("ours", model)
    result = evaluate_run(run, device=CPU, batch_size=4)
    split = world.data.manifest.splits["validation"]
    direct = evaluate(
        model,
        world.data.split("validation"),
        labels=world.labels.split("validation"),
        batch_size=4,
        device=CPU,
        bytes_per_token=split.bytes / split.tokens,
    )
    assert result.evaluation.loss == direct.loss
    assert result.evaluation.concept_recall == direct.concept_recall
    assert result.evaluation.bits_per_byte == pytest.approx(direct.loss * split.tokens / split.bytes / math.log(2))
    assert result.evaluation.blocks == split.blocks
    assert result.reliance is not None
    assert result.reliance.oracle is not None
    written = json.loads((run.path / "evaluation.json").read_text())
    assert written["loss"] == direct.loss
    assert written["data_fingerprint"] == world.data.manifest.fingerprint
    assert set(written["concept_reliance"]["deltas"]) == {"zero", "shuffle", "oracle"}
    assert run.tokenizer().encode("list of") == world.tokenizer.encode("list of")


def test_runs_without_concepts_or_mixing_say_why_there_is_no_reliance(world, trained):
    plain = evaluate_run(trained("ntp", world.plain(), with_labels=False), device=CPU)
    assert plain.reliance is None
    assert "no concepts" in plain.to_json()["concept_reliance_note"]
    assert plain.evaluation.concept_recall is None
    unmixed = evaluate_run(trained("unmixed", world.student("none")), device=CPU, limit_blocks=4)
    assert "nothing to intervene on" in unmixed.reliance_note
    assert unmixed.evaluation.concept_recall is not None
    short = evaluate_run(trained("short", world.student()), device=CPU, limit_blocks=4, reliance=False)
    assert short.reliance is None
    assert short.reliance_note is None
    assert short.evaluation.blocks == 4


def test_too_few_blocks_to_shuffle_cost_only_the_reliance(world, trained):
    run = trained("ours", world.student())
    single = evaluate_run(run, device=CPU, limit_blocks=1)
    assert single.reliance is None
    assert "a single block" in single.reliance_note
    one_by_one = evaluate_run(run, device=CPU, batch_size=1, limit_blocks=4)
    assert one_by_one.reliance.blocks == 4


def test_missing_labels_are_warned_about(world, trained, caplog):
    labels = {"path": "/nowhere/labels", "fingerprint": "x"}
    result = evaluate_run(trained("ours", world.student(), labels=labels), device=CPU, limit_blocks=4)
    assert result.evaluation.concept_recall is None
    assert result.reliance.oracle is None
    assert "no longer at" in caplog.messages[0]
    again = evaluate_run(
        Run.open(trained("other", world.student(), with_labels=False).path),
        device=CPU,
        limit_blocks=4,
    )
    assert again.reliance.oracle is None
    assert "no labels of this data" in caplog.messages[1]


def test_data_that_moved_changed_or_does_not_fit(world, trained, tmp_path):
    meta = world.data.manifest
    data = {"path": "/nowhere/data", "fingerprint": "f", "block_size": 10}
    data["tokenizer_fingerprint"] = meta.tokenizer_fingerprint
    moved = trained("moved", world.plain(), data=data)
    with pytest.raises(CoCoMixError, match=r"/nowhere/data.*--data"):
        evaluate_run(moved, device=CPU)
    assert evaluate_run(moved, device=CPU, data=world.data.path, limit_blocks=2).evaluation.blocks == 2
    changed = trained("changed", world.plain(), data={**data, "path": str(world.data.path)})
    with pytest.raises(CoCoMixError, match="run changed"):
        evaluate_run(changed, device=CPU)
    foreign = trained(
        "foreign", world.plain(), data={**data, "path": str(world.data.path), "tokenizer_fingerprint": "?"}
    )
    with pytest.raises(CoCoMixError, match=r"tokenizer.*foreign"):
        evaluate_run(foreign, device=CPU)
    with pytest.raises(CoCoMixError, match="no concepts"):
        evaluate_run(trained("ntp", world.plain()), device=CPU, labels=world.labels.path)
    with pytest.raises(CoCoMixError, match="no split 'test'"):
        evaluate_run(trained("ours", world.student()), device=CPU, split="test")


def test_labels_of_another_dictionary_size_are_refused(world, trained):
    model = cocomix_model(num_concepts=30)
    model.resize_token_embeddings(world.data.manifest.vocab_size)
    with pytest.raises(CoCoMixError, match=r"24.* 30"):
        evaluate_run(trained("ours", model), device=CPU)


def test_an_interrupted_evaluation_writes_nothing(world, trained):
    model = world.student()
    torch.nn.init.constant_(model.lower.wte.weight, float("nan"))
    run = trained("nan", model)
    with pytest.raises(CoCoMixError, match="not a finite number"):
        evaluate_run(run, device=CPU)
    assert not (run.path / "evaluation.json").exists()
    shutil.rmtree(run.path)


def test_reliance_beside_runs_is_read_back(workshop: Workshop, tmp_path: Path) -> None:
    runs = [shutil.copytree(run, tmp_path / run.name) for run in (workshop.cocomix_run, workshop.ntp_run)]
    opened = [Run.open(run) for run in runs]
    assert reliance_of_runs(opened) == {}
    measured = evaluate_run(opened[0], device=torch.device("cpu"))
    assert reliance_of_runs(opened) == {opened[0].manifest.name: measured.reliance}
    twice = reliance_of_runs([opened[0], opened[0]])
    assert list(twice) == [f"{opened[0].manifest.name}, seed 0"]
    file = runs[0] / "evaluation.json"
    file.write_text(json.dumps({"concept_reliance": {"loss": 1.0}}))
    with pytest.raises(CoCoMixError, match="damaged"):
        reliance_of_runs(opened)
