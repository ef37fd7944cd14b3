"""Profiles of training steps, and what a step must not do."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from cocomix.artifacts import partial_path
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.objectives import default_objectives, loss_terms
from tests.command_line import Cli
from tests.model.factories import MAIN_BACKBONES, backbone_config, concepts, student, tokens
from tests.workshop import Workshop


def test_a_profile_shows_the_steps_and_changes_no_weight(workshop: Workshop, cli: Cli, tmp_path: Path) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "cocomix", name="mixed")
    cli("train", recipe, "--output", tmp_path / "run", "--profile", 3, "--quiet")
    events = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())["traceEvents"]
    names = Counter(event.get("name") for event in events)
    assert sum(name is not None and name.startswith("Optimizer.step") for name in names.elements()) == 3
    assert "_FusedHead" in names
    assert "aten::addmm" in (tmp_path / "run" / "profile" / "operators.txt").read_text()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        workshop.cocomix_run / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("steps", "says"), [(-1, "at least 1"), (11, "needs 13 steps")])
def test_a_profile_that_cannot_be_is_refused(workshop: Workshop, tmp_path: Path, steps: int, says: str) -> None:
    with pytest.raises(CoCoMixError, match=says):
        train(workshop.recipe("cocomix"), tmp_path / "run", profile_steps=steps)
    assert not (tmp_path / "run").exists()
    assert not partial_path(tmp_path / "run").joinpath("profile").exists()


class _HostReads(TorchDispatchMode):
    """Counts operators that hand a value to Python, where an accelerator would have to be waited for."""

    OPERATORS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if name in self.OPERATORS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_a_training_step_reads_nothing_back_from_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward pass, both losses, recall counts and backward pass, on packed blocks."""
    # On the CPU alone labels are checked by value; on an accelerator that check is left out.
    monkeypatch.setattr("cocomix.model.modeling.check_concept_labels", lambda *_: None)
    model = student(family, backbone=backbone_config(family, pad_token_id=None)).train()
    batch = {"input_ids": tokens(), "labels": tokens(), "concept_labels": concepts()}
    with _HostReads() as reads:
        terms, _ = loss_terms(default_objectives(model.config), model, batch)
        sum(term.sum / term.count for term in terms.values() if term.weight is not None).backward()
    assert not reads.found
