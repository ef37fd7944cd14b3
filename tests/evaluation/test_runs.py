import pytest
import torch

from cocomix.artifacts import Damaged, NotAnArtifact, write_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CurvePoint, Run
from tests.evaluation.conftest import cocomix_model, manifest


def test_reads_manifest_and_curve(write_run):
    run = Run.open(write_run("ntp", [6.0, 5.0]))
    assert run.manifest.name == "ntp"
    assert run.manifest.data.block_size == 128
    assert run.curve == (CurvePoint(500, 25.0, 15000.0, 6.0), CurvePoint(1000, 50.0, 30000.0, 5.0))


def test_of_rows_repeated_after_a_resume_the_last_counts(write_run):
    path = write_run("ntp", [6.0, 5.0])
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"step": 1, "tokens": 500, "seconds": 26.0, "flops": 15000.0, "eval_loss": 5.9}\n')
    curve = Run.open(path).curve
    assert [(point.tokens, point.loss) for point in curve] == [(500, 5.9), (1000, 5.0)]


def test_loads_the_saved_model(write_run):
    path = write_run("cocomix", [5.0])
    model = cocomix_model()
    model.save_pretrained(path)
    loaded = Run.open(path).model()
    assert not loaded.training
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_run_without_weights_is_refused(write_run):
    with pytest.raises(CoCoMixError, match=r"cannot be loaded"):
        Run.open(write_run("ntp", [5.0])).model()


def test_unfinished_folders(tmp_path):
    (tmp_path / "half.partial").mkdir()
    for path in (tmp_path / "half", tmp_path / "half.partial"):
        with pytest.raises(NotAnArtifact, match=r"half.*`cocomix train`"):
            Run.open(path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokens": "many"}, "tokens"),
        ({"seconds": 0}, "seconds"),
        ({"final": {}}, "final.eval_loss"),
        ({"data": None}, "data"),
    ],
)
def test_damaged_manifests_are_named(write_run, changes, field):
    path = write_run("ntp", [5.0])
    write_json(path / "manifest.json", manifest("ntp", **changes))
    with pytest.raises(Damaged, match=field):
        Run.open(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "tok', "Invalid JSON"),
        ("[1]", ".*object"),
        ('{"eval_loss": NaN, "tokens": 1, "seconds": 1, "flops": 1}', "eval_loss: .*finite"),
        ('{"eval_loss": 5.0, "tokens": 1, "seconds": 1}', "flops is missing"),
        ('{"eval_loss": 5.0, "tokens": true, "seconds": 1, "flops": 1}', "tokens: .*integer"),
    ],
)
def test_damaged_lines_are_named_with_file_and_number(write_run, line, message):
    path = write_run("ntp", [6.0, 5.0])
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(CoCoMixError, match=rf"metrics\.jsonl:5: {message}"):
        Run.open(path)


def test_missing_empty_and_binary_metrics(write_run):
    path = write_run("ntp", [5.0])
    (path / "metrics.jsonl").write_text('{"step": 1, "tokens": 1, "loss": 9.0}\n')
    with pytest.raises(CoCoMixError, match="holds no evaluation"):
        Run.open(path)
    (path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CoCoMixError, match="not UTF-8"):
        Run.open(path)
    (path / "metrics.jsonl").unlink()
    with pytest.raises(CoCoMixError, match=r"metrics\.jsonl"):
        Run.open(path)
