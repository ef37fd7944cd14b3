import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.evaluation.teacher_flops import TeacherCost, teacher_cost
from cocomix.model import account
from tests.workshop import BLOCK, CONCEPTS, Workshop


def test_at_counts_every_stored_token_once() -> None:
    cost = TeacherCost(((2.0, 200), (10.0, 100), (1.0, 50)))
    assert cost.at(0) == 0
    assert cost.at(40) == 2 * 40 + 11 * 40
    assert cost.at(200) == 2 * 200 + 10 * 100 + 50


def test_labels_cost_a_forward_and_part_of_a_backward_pass(workshop: Workshop) -> None:
    found = teacher_cost(Run.open(workshop.cocomix_run))
    assert found is not None
    ((flops, tokens),) = found.parts
    assert tokens == Tokens.open(workshop.data).manifest.splits["train"].blocks * BLOCK
    teacher = AutoModelForCausalLM.from_pretrained(workshop.teacher)
    whole, d_model, layers, hooked = account(teacher, BLOCK).forward_flops_per_token, 16, 3, 2
    head = 2 * teacher.config.vocab_size * d_model
    below = hooked * (2 * 12 * d_model**2 + 4 * d_model * (BLOCK + 1) / 2)
    assert whole == pytest.approx(below * layers / hooked + head)
    assert flops == pytest.approx(2 * whole - below + 2 * CONCEPTS * d_model)
    assert teacher_cost(Run.open(workshop.ntp_run)).at(1000) == 0


def test_unknown_where_the_labels_are_gone(workshop: Workshop, tmp_path: Path) -> None:
    run = shutil.copytree(workshop.cocomix_run, tmp_path / "run")
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(workshop.labels), str(tmp_path / "gone")))
    assert teacher_cost(Run.open(run)) is None
