import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from cocomix.concepts import FitSettings, TeacherConfig, labeller_config
from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.evaluation.teacher_flops import dictionary_flops, flops_from_nothing, teacher_flops
from cocomix.labelling import Labels, distill_data, fit_on_data, label_and_distill, label_data
from cocomix.model import account
from cocomix.training import train
from cocomix.training.opened_run import ExtraFlops, LabelReference, OnlineLabelReference, TeachingReference
from tests.workshop import BLOCK, CONCEPTS, Workshop


def test_stored_labels_count_once_and_as_far_as_the_run_read(workshop: Workshop, tmp_path: Path) -> None:
    run = Run.open(workshop.cocomix_run)
    per_token = Labels.open(workshop.labels).manifest.flops_per_token
    whole = Tokens.open(workshop.data).manifest.splits["train"].blocks * BLOCK
    assert run.manifest.labels is not None
    for tokens, counted in ((0, 0), (40, 40), (10 * whole, whole)):
        labels = run.manifest.labels.model_copy(update={"tokens": (tokens,)})
        run.manifest = run.manifest.model_copy(update={"labels": labels})
        assert teacher_flops(run) == pytest.approx(per_token * counted)


def test_work_while_training_counts_until_its_weight_is_0(workshop: Workshop) -> None:
    run = Run.open(workshop.ntp_run)
    costs = {"kd": (10.0, 10.0, 100), "hidden": (1.0, 1.0, 10**9), "hint": (7.0, 4.0, 50), "nitp": (5.0, 0.0, 200)}
    extra = {
        name: ExtraFlops(per_token=flops, of_teacher=of_teacher, tokens=until)
        for name, (flops, of_teacher, until) in costs.items()
    }
    run.manifest = run.manifest.model_copy(update={"extra_flops": extra, "tokens": 500})
    assert teacher_flops(run) == 10 * 100 + 500 + 4 * 50
    assert run.manifest.training_flops == 500 * run.manifest.flops_per_token.training + 3 * 50 + 5 * 200


def test_labels_cost_a_forward_and_part_of_a_backward_pass(workshop: Workshop) -> None:
    run = Run.open(workshop.cocomix_run)
    tokens = min(run.manifest.tokens, Tokens.open(workshop.data).manifest.splits["train"].blocks * BLOCK)
    found = teacher_flops(run)
    assert found is not None
    flops = found / tokens
    teacher = AutoModelForCausalLM.from_pretrained(workshop.teacher)
    whole, d_model, layers, hooked = account(teacher, BLOCK).forward_flops_per_token, 16, 3, 2
    head = 2 * teacher.config.vocab_size * d_model
    below = hooked * (2 * 12 * d_model**2 + 4 * d_model * (BLOCK + 1) / 2)
    assert whole == pytest.approx(below * layers / hooked + head)
    assert flops == pytest.approx(2 * whole - below + 2 * CONCEPTS * d_model)
    assert teacher_flops(Run.open(workshop.ntp_run)) == dictionary_flops(Run.open(workshop.ntp_run)) == 0


def test_unknown_where_the_labels_are_gone(workshop: Workshop, tmp_path: Path) -> None:
    run = shutil.copytree(workshop.cocomix_run, tmp_path / "run")
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(workshop.labels), str(tmp_path / "gone")))
    assert teacher_flops(Run.open(run)) is None
    assert dictionary_flops(Run.open(run)) is None


def test_a_dictionarys_fit_is_counted_by_formula(workshop: Workshop, tmp_path: Path) -> None:
    settings = FitSettings(num_concepts=32, k=4, tokens=2048, batch_size=256, forward_tokens=512)
    teacher = TeacherConfig(model=str(workshop.teacher), layer=1)
    report = fit_on_data(workshop.data, teacher, tmp_path / "dictionary", settings).manifest.report
    assert report is not None
    d_model, layers = 16, 2  # of the teacher, up to the layer
    below = layers * (2 * 12 * d_model**2 + 4 * d_model * (BLOCK + 1) / 2)
    assert report.flops == pytest.approx(report.tokens * (below + 10 * d_model * 32))


def test_a_run_whose_concepts_weigh_nothing_costs_no_dictionary_and_no_teacher(
    workshop: Workshop, tmp_path: Path
) -> None:
    """It read no label, and the ledger counted the fit of the dictionary that they were made with."""
    settings = FitSettings(num_concepts=32, k=4, tokens=2048, batch_size=256, forward_tokens=512)
    teacher = TeacherConfig(model=str(workshop.teacher), layer=1)
    fit_on_data(workshop.data, teacher, tmp_path / "dictionary", settings)
    source = {"teacher": teacher, "dictionary": {"path": str(tmp_path / "dictionary")}}
    label_data(workshop.data, labeller_config({"kind": "activation", **source}), tmp_path / "labels", force=True)
    for weight in (0.1, 0.0):
        model = {"mixing": "add", "num_concepts": 32, "concept_loss_weight": weight}
        recipe = workshop.recipe("cocomix", model=model, labels=str(tmp_path / "labels"), tokens=8 * BLOCK)
        run = Run.open(train(recipe, tmp_path / f"run-{weight}"))
        spent = [run.manifest.training_flops, teacher_flops(run), dictionary_flops(run)]
        assert [found and found > 0 for found in spent] == [True, weight > 0, weight > 0]
        of_teacher = Run.open(workshop.teacher).manifest.training_flops if weight else 0.0
        assert flops_from_nothing(run) == pytest.approx(sum(map(float, filter(None, spent))) + of_teacher)


@pytest.mark.parametrize("kind", ["contextual", "token_lookup", "attribution"])
def test_a_first_pass_over_a_sample_counts_once(kind: str, workshop: Workshop, tmp_path: Path) -> None:
    source = {"teacher": {"model": str(workshop.teacher), "layer": 1}, "dictionary": {"path": str(workshop.dictionary)}}
    centred = {"centre_by_token": True} if kind == "attribution" else {}
    config = labeller_config({"kind": kind, "sample_tokens": 3 * BLOCK + 1, **centred, **source})
    made = label_data(workshop.data, config, tmp_path / "labels").manifest
    d_model, vocab = 16, AutoModelForCausalLM.from_pretrained(workshop.teacher).config.vocab_size
    block = 2 * 12 * d_model**2 + 4 * d_model * (BLOCK + 1) / 2
    labelling = 2 * block + 2 * CONCEPTS * d_model  # of a teacher of 3 blocks, read after the second
    if kind == "attribution":  # the third, the head, and back through both
        labelling += 2 * (block + 2 * vocab * d_model)
    assert made.fit_flops == pytest.approx(3 * BLOCK * labelling)
    run = Run.open(workshop.ntp_run)
    reference = LabelReference(path=str(tmp_path / "labels"), fingerprint=made.fingerprint)
    run.manifest = run.manifest.model_copy(update={"labels": reference, "tokens": 40})
    for shared in (False, True):
        assert teacher_flops(run, shared=shared) == pytest.approx(made.fit_flops + 40 * made.flops_per_token)
    online = OnlineLabelReference(fingerprint="f", labels={}, labeller={}, fit_flops=7.0)
    run.manifest = run.manifest.model_copy(update={"labels": None, "online_labels": online})
    assert [teacher_flops(run), teacher_flops(run, shared=True)] == [7.0, 0.0]


def test_a_pass_that_made_labels_and_probabilities_counts_once(workshop: Workshop, tmp_path: Path) -> None:
    """By hand, for a teacher of 3 blocks with the dictionary on the output of the second."""
    source = {"teacher": {"model": str(workshop.teacher), "layer": 1}, "dictionary": {"path": str(workshop.dictionary)}}
    config = labeller_config({"kind": "activation", **source})
    labels, targets = tmp_path / "labels", tmp_path / "probabilities"
    label_and_distill(workshop.data, config, labels, targets, top_k=4)
    d_model, vocab = 16, AutoModelForCausalLM.from_pretrained(workshop.teacher).config.vocab_size
    block = 2 * 12 * d_model**2 + 4 * d_model * (BLOCK + 1) / 2
    alone = {"labels": 2 * block + 2 * CONCEPTS * d_model, "probabilities": 3 * block + 2 * vocab * d_model}

    def flops(labels: Path | None, targets: Path | None) -> float:
        run, changes = Run.open(workshop.ntp_run), dict[str, Any](tokens=40)
        if labels is not None:
            changes["labels"] = LabelReference(path=str(labels), fingerprint=Labels.open(labels).fingerprint)
        if targets is not None:
            changes["teaching"] = TeachingReference(path=str(targets))
        run.manifest = run.manifest.model_copy(update=changes)
        found_flops = teacher_flops(run)
        assert found_flops is not None
        return found_flops / 40

    assert flops(labels, None) == pytest.approx(alone["labels"])
    assert flops(None, targets) == pytest.approx(alone["probabilities"])
    assert flops(labels, targets) == pytest.approx(sum(alone.values()) - 2 * block)
    distill_data(workshop.data, TeacherConfig(model=str(workshop.teacher), layer=1), tmp_path / "separate", top_k=4)
    assert flops(labels, tmp_path / "separate") == pytest.approx(sum(alone.values()))
