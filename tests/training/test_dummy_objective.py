"""An objective that is not ours: everything that it takes stands in this file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.artifacts import partial_path, read_json
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import CoCoMixTrainer, train
from cocomix.training.objectives import LossTerm, Objective, objective, objective_type, register_objective
from tests.training.test_resume import Killed, assert_same_run, kill_at, rows
from tests.training.test_trainer import build, trainer
from tests.workshop import BLOCK, Workshop

WEIGHT = {"shape": "stop", "value": 0.3, "until": 0.5}


class TwoAhead(Objective):
    """The token after the next one, predicted from the last hidden state by a head of its own."""

    name = "two_ahead"

    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"output_hidden_states": True}

    def counts(self, batch: Any) -> dict[str, Tensor]:
        return {"two_ahead_loss": batch["labels"][:, 2:].ne(IGNORE).sum()}

    def __call__(self, output: Any, batch: Any, head: nn.Module | None) -> dict[str, LossTerm]:
        assert head is not None
        hidden = output.hidden_states[-1]
        read = hidden[:, hidden.shape[1] // batch["labels"].shape[1] - 1 :: hidden.shape[1] // batch["labels"].shape[1]]
        targets = batch["labels"][:, 2:].flatten()
        loss = F.cross_entropy(head(read[:, :-2]).flatten(0, 1), targets, ignore_index=IGNORE, reduction="sum")
        return {"two_ahead_loss": LossTerm(loss, self.counts(batch)["two_ahead_loss"], self.weight)}

    def build_head(self, config: Any) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size)

    def extra_flops_per_token(self, config: Any) -> float:
        return 3.0 * 2 * config.hidden_size * config.vocab_size


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective.OBJECTIVES, "registered", {})
    register_objective("two_ahead")(TwoAhead)


@pytest.mark.parametrize("arm", ["ntp", "cocomix"])
def test_it_trains_and_its_head_stays_behind(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    changes: dict[str, Any] = {"name": "run", "auxiliary": {"two_ahead": WEIGHT}, "tokens": 4 * 8 * BLOCK}
    changes["training"] = {"logging_steps": 1, "save_steps": 1}
    run = train(workshop.recipe(arm, **changes), tmp_path / "whole")
    training = [row for row in rows(run) if "loss" in row]
    assert ["two_ahead_loss" in row for row in training] == [True, True, False, False]
    manifest = read_json(run / "manifest.json")
    assert manifest["extra_flops"]["two_ahead"]["tokens"] == 2 * 8 * BLOCK
    assert manifest["weights"]["two_ahead"] == WEIGHT
    assert "two_ahead 0.3 until 50%" in manifest["arm"]
    model, found = AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
    assert not any(found.values())
    assert manifest["parameters"]["total"] == sum(weight.numel() for weight in model.parameters())

    with monkeypatch.context() as patched:
        kill_at(patched, 3)
        with pytest.raises(Killed):
            train(workshop.recipe(arm, **changes), tmp_path / "run")
    checkpoints, weight = partial_path(tmp_path / "run") / "checkpoints", "objective_heads.two_ahead.weight"
    heads = [load_file(checkpoints / f"checkpoint-{step}" / "model.safetensors")[weight] for step in (1, 2)]
    assert not torch.equal(*heads)
    train(workshop.recipe(arm, **changes), tmp_path / "run")
    assert_same_run(tmp_path / "run", run)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for batch, accumulation in ((8, 1), (1, 8)):
        shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        torch.manual_seed(0)
        made, logs = trainer(build("cocomix"), tmp_path, learning_rate=1e-2, **shape)
        with_it = CoCoMixTrainer(
            model=made.model,
            args=made.args,
            train_dataset=made.train_dataset,
            objectives=[*made.objectives, TwoAhead(made.objectives[0].weight)],
            callbacks=[logs],
        )
        torch.manual_seed(0)
        nn.init.normal_(with_it.model.objective_heads["two_ahead"].weight)
        nn.init.zeros_(with_it.model.objective_heads["two_ahead"].bias)
        with_it.train()
        weights.append({name: value.detach() for name, value in with_it.model.named_parameters()})
        assert "two_ahead_loss" in logs.rows[0]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_a_name_that_is_not_there(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(CoCoMixError, match="three_ahead"):
        train(workshop.recipe("ntp", auxiliary={"three_ahead": 0.1}), tmp_path / "run")
    assert not partial_path(tmp_path / "run").exists()


def test_a_class_that_is_defined_again_takes_its_own_place() -> None:
    def cell() -> type[Objective]:
        @register_objective("cell")
        class Cell(TwoAhead):
            pass

        return Cell

    first, second = cell(), cell()
    assert first is not second
    assert objective_type("cell") is second


def test_a_name_that_is_taken() -> None:
    class Other(TwoAhead):
        pass

    with pytest.raises(CoCoMixError, match="two_ahead"):
        register_objective("two_ahead")(Other)
