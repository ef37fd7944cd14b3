import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cocomix.evaluation import evaluate_run, evaluations_of
from cocomix.evaluation.inference import measure
from cocomix.evaluation.references import ORDERS
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run, train
from tests.evaluation.conftest import cocomix_model
from tests.evaluation.small_world import World, build_world
from tests.workshop import TOY_BACKBONE, Workshop, prepare_toy, write_corpus

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
        settings = {"data": data, "labels": labels if with_labels else None, "tokens": 100 * meta.block_size, **changes}
        path = write_run(name, [5.0], **settings)
        recipe = {"objective": "ntp", "data": data["path"], "tokens": 1000, "model": {"backbone": TOY_BACKBONE}}
        (path / "recipe.yaml").write_text(json.dumps(recipe))
        model.save_pretrained(path)
        world.tokenizer.save_pretrained(path)
        return Run.open(path)

    return write


@pytest.fixture
def runs(workshop: Workshop, tmp_path) -> dict[str, Run]:
    """Copies of the workshop's runs, to be written to."""
    found = {"cocomix": workshop.cocomix_run, "ntp": workshop.ntp_run}
    return {name: Run.open(shutil.copytree(path, tmp_path / name)) for name, path in found.items()}


def test_a_cocomix_run_is_measured_whole_and_written(world, trained):
    model = world.student()
    run = trained("ours", model)
    result = evaluate_run(run, device=CPU, batch_size=4)
    split = world.data.manifest.splits["validation"]
    labels = world.labels.split("validation")
    direct, concepts = measure(model, world.data.split("validation"), labels=labels, batch_size=4, device=CPU)
    assert result.loss == pytest.approx(np.nanmean(direct.astype(np.float64)))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.concepts.recall_at_32 == pytest.approx(concepts.found.sum() / concepts.labels.sum())
    assert result.concepts.concepts_predicted == (concepts.predicted > 0).sum()
    assert result.bits_per_byte == pytest.approx(result.loss * split.tokens / split.bytes / math.log(2))
    assert (result.blocks, result.limited, result.block_size) == (split.blocks, False, 10)
    assert result.targets == split.blocks * 9
    assert result.reliance.kinds
    folder = run.path / "evaluations" / f"{world.data.manifest.fingerprint[:12]}-validation-float32"
    assert json.loads((folder / "evaluation.json").read_text()) == result.model_dump(mode="json")
    assert run.tokenizer().encode("list of") == world.tokenizer.encode("list of")


def test_every_predicted_token_is_a_row_with_its_references(world, trained):
    run = trained("ours", world.student())
    result = evaluate_run(run, device=CPU, reliance=False)
    table = result.token_losses()
    assert list(table) == [
        *("block", "position", "document", "token", "loss", "token_class", "frequency", "seen"),
        *ORDERS,
    ]
    ids = np.stack([row["input_ids"].numpy() for row in world.data.split("validation")])
    np.testing.assert_array_equal(table["token"], ids[:, 1:].ravel())
    np.testing.assert_array_equal(table["block"], np.repeat(np.arange(len(ids)), 9))
    np.testing.assert_array_equal(table["position"], np.tile(np.arange(1, 10), len(ids)))
    seen = [token in row[:place] for row in ids.tolist() for place, token in enumerate(row) if place]
    assert table["seen"].tolist() == seen
    document, expected = 0, []
    for row in ids.tolist():
        for place, token in enumerate(row):
            expected += [document] if place else []
            document += token == world.data.manifest.eos_token_id
    assert table["document"].tolist() == expected
    for order in ORDERS:
        assert table[order].mean() == pytest.approx(getattr(result.references, order), rel=1e-5)
    assert result.references.fourgram < result.references.unigram
    for name in ("token_class", "position", "frequency", "seen"):
        slices = [each for each in result.slices if each.slice == name]
        assert sum(each.tokens for each in slices) == result.targets
        assert sum(each.tokens * each.loss for each in slices) / result.targets == pytest.approx(result.loss)


def test_evaluations_of_other_conditions_stand_side_by_side_and_the_same_one_is_replaced(world, trained):
    run = trained("ours", world.student())
    assert evaluations_of(run) == []
    whole = evaluate_run(run, device=CPU, reliance=False)
    few = evaluate_run(run, device=CPU, reliance=False, limit_blocks=3)
    narrow = evaluate_run(run, device=CPU, reliance=False, limit_blocks=3, dtype=torch.bfloat16)
    short = evaluate_run(run, device=CPU, reliance=False, block_size=5)
    assert evaluations_of(run) == [short, narrow, few, whole]
    again = evaluate_run(run, device=CPU, reliance=False)
    assert evaluations_of(run) == [again, short, narrow, few]
    pd.testing.assert_frame_equal(few.token_losses(), whole.token_losses()[: few.targets], check_exact=False, rtol=1e-5)
    assert few.references.training_tokens == whole.references.training_tokens


def test_training_text_is_not_counted_twice(world, trained, monkeypatch):
    run = trained("ours", world.student())
    whole = evaluate_run(run, device=CPU, reliance=False)
    monkeypatch.setattr("cocomix.evaluation.measure_run.measure_references", lambda *_: pytest.fail("counted again"))
    assert evaluate_run(run, device=CPU, reliance=False).references == whole.references
    few = evaluate_run(run, device=CPU, reliance=False, limit_blocks=3)
    assert few.references.bigram == pytest.approx(whole.token_losses()["bigram"][: few.targets].mean())


def test_only_blocks_the_run_read_are_counted(world, trained):
    run = trained("ours", world.student(), tokens=70)
    assert evaluate_run(run, device=CPU, reliance=False).references.training_tokens == 70


@pytest.mark.parametrize("name", ["evaluation.json", "losses.parquet"])
def test_a_damaged_evaluation_is_named_and_made_again(world, trained, name):
    run = trained("ours", world.student())
    evaluate_run(run, device=CPU, reliance=False)
    (file,) = run.path.glob(f"evaluations/*/{name}")
    file.write_text('{"format_version": 1}' if name.endswith("json") else "PAR")
    with pytest.raises(CoCoMixError, match=name):
        evaluations_of(run)[0].token_losses()
    again = evaluate_run(run, device=CPU, reliance=False)
    assert len(evaluations_of(run)[0].token_losses()) == again.targets


def test_longer_blocks_are_cut_to_the_length_trained_with(workshop: Workshop, runs, tmp_path):
    tokenizer = {"vocab_size": None, "tokenizer": str(workshop.data / "tokenizer")}
    corpus = write_corpus(tmp_path / "texts")
    long = prepare_toy(corpus, tmp_path / "long", block_size=32, tokens_per_file=320, **tokenizer)
    same = prepare_toy(corpus, tmp_path / "same", **tokenizer)
    results = [evaluate_run(runs["ntp"], data=data.path, device=CPU, limit_blocks=8) for data in (long, same)]
    assert [result.block_size for result in results] == [16, 16]
    assert results[0].loss == pytest.approx(results[1].loss)
    for size in (0, 1, 33):
        with pytest.raises(CoCoMixError, match=f"block_size={size}"):
            evaluate_run(runs["ntp"], data=long.path, device=CPU, block_size=size)


def test_a_mixture_is_measured_with_the_labels_of_every_corpus(workshop: Workshop, tmp_path):
    corpora = [{"path": str(workshop.data), "labels": str(workshop.labels), "weight": weight} for weight in (1, 2)]
    recipe = workshop.recipe("cocomix", name="mixture", data={"mixture": corpora}, labels=None)
    run = Run.open(train(recipe, tmp_path / "mixture"))
    result = evaluate_run(run, device=CPU, limit_blocks=9)
    assert result.blocks == 9
    assert result.concepts.recall_at_32 is not None
    assert result.token_losses()["document"].is_monotonic_increasing


def test_runs_without_concepts_or_mixing_say_why_there_is_no_reliance(world, trained):
    plain = evaluate_run(trained("ntp", world.plain(), with_labels=False), device=CPU)
    assert plain.reliance is None
    assert "no concepts" in plain.reliance_note
    assert plain.concepts is None
    unmixed = evaluate_run(trained("unmixed", world.student("none")), device=CPU, limit_blocks=4)
    assert "nothing to replace" in unmixed.reliance_note
    assert unmixed.concepts.recall_at_32 is not None
    short = evaluate_run(trained("short", world.student()), device=CPU, limit_blocks=4, reliance=False)
    assert short.reliance is None
    assert short.reliance_note is None
    assert (short.blocks, short.limited) == (4, True)


def test_too_few_blocks_to_shuffle_cost_only_the_reliance(world, trained):
    run = trained("ours", world.student())
    single = evaluate_run(run, device=CPU, limit_blocks=1)
    assert single.reliance is None
    assert "a single block" in single.reliance_note
    assert evaluate_run(run, device=CPU, batch_size=1, limit_blocks=4).reliance.kinds


def test_missing_labels_are_warned_about(world, trained, caplog):
    labels = {"path": "/nowhere/labels", "fingerprint": "x"}
    result = evaluate_run(trained("ours", world.student(), labels=labels), device=CPU, limit_blocks=4)
    assert result.concepts.recall_at_32 is None
    assert any("/nowhere/labels" in message for message in caplog.messages)
    without = trained("other", world.student(), with_labels=False)
    assert evaluate_run(without, device=CPU, limit_blocks=4).concepts.recall_at_32 is None
    assert any("without stored labels" in message for message in caplog.messages)


def test_data_that_moved_changed_or_does_not_fit(world, trained, caplog):
    meta = world.data.manifest
    data = {"path": "/nowhere/data", "fingerprint": "f", "block_size": 10}
    data["tokenizer_fingerprint"] = meta.tokenizer_fingerprint
    moved = trained("moved", world.plain(), data=data)
    with pytest.raises(CoCoMixError, match=r"/nowhere/data.*--data"):
        evaluate_run(moved, device=CPU)
    elsewhere = evaluate_run(moved, device=CPU, data=world.data.path, limit_blocks=2)
    assert elsewhere.blocks == 2
    assert elsewhere.references is None
    assert any("no n-gram references" in message for message in caplog.messages)
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
    with pytest.raises(CoCoMixError, match="limit_blocks=0"):
        evaluate_run(trained("none", world.student()), device=CPU, limit_blocks=0)


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
    assert not (run.path / "evaluations").exists()
