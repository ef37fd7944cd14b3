"""Labels made from the text alone: no teacher anywhere from `cocomix label` to the ledger of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.artifacts import file_sha256
from cocomix.data import Tokens
from cocomix.evaluation.teacher_flops import dictionary_flops, teacher_flops
from cocomix.interpret import open_run_teacher
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run, train
from cocomix.training.callbacks import MetricsFile
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

KINDS: dict[str, dict[str, Any]] = {
    "future_words": {"min_idf": 0.5},
    "future_clusters": {"num_concepts": 12, "dimensions": 6, "window": 6},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(workshop: Workshop, tmp_path: Path, kind: str, cli: Cli) -> Path:
    settings = [part for name, value in KINDS[kind].items() for part in ("--set", f"{name}={value}")]
    cli("label", workshop.data, "--kind", kind, *settings, "-o", tmp_path / "labels")
    cli("verify", tmp_path / "labels")
    return tmp_path / "labels"


def test_stored_and_made_while_training_and_resumed_they_are_the_same(
    workshop: Workshop, tmp_path: Path, kind: str, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Labels.open(stored)
    assert labels.manifest.statistics.labelled_positions > 1000
    assert set(labels.tables()) >= {"idf"}
    assert "weights" not in labels.manifest.made_from
    tokens = 6 * 8 * BLOCK
    from_disk = Run.open(
        train(workshop.recipe("cocomix", name="run", labels=str(stored), tokens=tokens), tmp_path / "a")
    )
    per_token = labels.manifest.flops_per_token
    assert per_token == {"future_words": 0, "future_clusters": 2 * 6 * (6 + 12)}[kind]
    assert teacher_flops(from_disk) == per_token * tokens
    assert dictionary_flops(from_disk) == 0
    made = workshop.recipe("cocomix", name="run", labels={"path": None, "kind": kind, **KINDS[kind]}, tokens=tokens)

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "on_step_end", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "b")
    while_training = Run.open(train(made, tmp_path / "b"))
    hashes = [file_sha256(run.path / "model.safetensors") for run in (from_disk, while_training)]
    assert hashes[0] == hashes[1]
    assert teacher_flops(while_training) == teacher_flops(from_disk)
    with pytest.raises(CoCoMixError, match=kind):
        open_run_teacher(while_training, Tokens.open(workshop.data))


def test_settings_belong_to_the_labels(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    fingerprints = set()
    for number, setting in enumerate(("window=16", "window=4", "decay=0.5", "min_idf=1", "sample_tokens=200")):
        cli("label", workshop.data, "--kind", "future_words", "--set", setting, "-o", tmp_path / str(number))
        fingerprints.add(Labels.open(tmp_path / str(number)).fingerprint)
    assert len(fingerprints) == 5
    cli("label", workshop.data, "--kind", "future_words", "-o", tmp_path / "again")
    again = Labels.open(tmp_path / "again")
    assert again.fingerprint == Labels.open(tmp_path / "0").fingerprint
    ids = again.split("train")[0]["concept_labels"]
    assert torch.equal(ids, Labels.open(tmp_path / "0").split("train")[0]["concept_labels"])
    cli.refuses("label", workshop.data, "--kind", "future_words", "--dictionary", "d", says="dictionary")
