"""Who is told about a run: TensorBoard by default, services that are asked for, and none of them a secret."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.arguments import training_arguments
from cocomix.training.callbacks import trackers
from tests.workshop import BLOCK, Workshop

SECRETS = {"WANDB_API_KEY": "secret-of-wandb", "HF_TOKEN": "secret-of-the-hub"}


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Stands in for a service: keeps what transformers' own callbacks would send."""

    sent: list[dict[str, Any]]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        type(self).sent.append({"project": args.project, "name": args.run_name, **args.to_dict()})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        type(self).sent.append(dict(logs))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    found = importlib.util.find_spec
    monkeypatch.setattr("cocomix.runtime.errors.find_spec", lambda name: found("json"))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    Recorder.sent = []
    return Recorder


def test_a_service_and_tensorboard(
    workshop: Workshop, tmp_path: Path, service: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    changes = {"report_to": ["tensorboard", "trackio"], "logging_steps": 1}
    recipe = workshop.recipe("cocomix", name="told", tokens=3 * 8 * BLOCK, training=changes)
    run = train(recipe, tmp_path / "run")
    first, *logged = service.sent
    assert (first["project"], first["name"]) == ("cocomix", "told")
    assert sum("ntp_loss" in row and "concept_loss" in row for row in logged) == 3
    assert any("eval_loss" in row for row in logged)
    assert len(list((run / "tensorboard").iterdir())) == 1
    told = str(service.sent)
    kept = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    for secret in SECRETS.values():
        assert secret not in told
        assert secret.encode() not in kept


def test_nobody(workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe("ntp", tokens=8 * BLOCK, training={"report_to": "none"})
    run = train(recipe, tmp_path / "quiet")
    assert not (run / "tensorboard").exists()
    assert (run / "metrics.jsonl").is_file()


def test_without_tensorboard_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.training.callbacks.find_spec", lambda name: None)
    assert trackers({}) == ()


def test_what_a_recipe_may_say(service: type[Recorder]) -> None:
    assert trackers({}) == ("tensorboard",)
    for nobody in ("none", ["none"], [], None):
        assert trackers({"report_to": nobody}) == ()
    assert trackers({"report_to": "wandb"}) == ("wandb",)
    assert trackers({"report_to": ["mlflow", "wandb", "mlflow"]}) == ("mlflow", "wandb")


@pytest.mark.parametrize(
    ("report_to", "says"),
    [
        ("trackio", "pip install 'cocomix[track]'"),
        (["tensorboard", "wnadb"], "names 'wnadb'"),
        ("all", "names 'all'"),
        (["none", "tensorboard"], "none alone"),
        (3, "is 3; give none, a name or a list"),
        ([["wandb"]], "give none, a name or a list"),
    ],
)
def test_what_it_may_not(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_to: Any, says: str
) -> None:
    monkeypatch.setattr("cocomix.training.callbacks.find_spec", lambda name: None)
    recipe = workshop.recipe("ntp", training={"report_to": report_to})
    with pytest.raises(CoCoMixError) as caught:
        training_arguments(recipe, tmp_path, BLOCK)
    assert says in str(caught.value)
