"""What the arms of a sweep share, each made once: data, teacher, dictionary, labels, stored probabilities."""

import logging
from collections.abc import Sequence
from pathlib import Path

from cocomix.artifacts import read_json, write_json
from cocomix.concepts import FitSettings, TeacherConfig
from cocomix.data import prepare
from cocomix.experiments.plan import Job, LoadedPlan
from cocomix.labelling import distill_data, fit_on_data, label_data
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train

__all__ = ["make_shared_parts"]

logger = logging.getLogger(__name__)


def make_shared_parts(loaded: LoadedPlan, jobs: Sequence[Job]) -> None:
    """Make what is missing of the parts that the plan describes.

    Raises:
        CoCoMixError: the folder holds parts made by another plan, or a part cannot be made.
    """
    plan, output = loaded.plan, loaded.output
    _claim(loaded)
    if plan.prepare is not None and not (output / "data").exists():
        logger.info("data")
        prepare(plan.prepare, output / "data")
    if plan.teacher is None or loaded.teacher_model is None:
        return
    teacher = TeacherConfig(model=loaded.teacher_model, layer=plan.teacher.layer, revision=plan.teacher.revision)
    if plan.teacher.recipe is not None and not Path(loaded.teacher_model).exists():
        logger.info("teacher")
        train(loaded.teacher_recipe(), Path(loaded.teacher_model))
    data = jobs[0].recipe.data
    if not isinstance(data, Path):
        raise CoCoMixError("a sweep makes dictionary and labels of one prepared corpus; let data name one folder.")
    for job in jobs:
        targets = None if job.recipe.distillation is None else job.recipe.distillation.targets
        if isinstance(targets, Path) and not targets.exists():
            logger.info(f"probabilities: {targets.name}")
            distill_data(data, teacher, targets, top_k=plan.probabilities_top_k)
    if plan.dictionary is None or loaded.dictionary_path is None:
        return
    if plan.dictionary.path is None and not Path(loaded.dictionary_path).exists():
        logger.info("dictionary")
        settings = FitSettings.model_validate(plan.dictionary.model_dump(include=set(FitSettings.model_fields)))
        fit_on_data(data, teacher, Path(loaded.dictionary_path), settings)
    for job in jobs:
        labels = job.recipe.labels
        if labels is not None and labels.path is not None and labels.labeller is not None and not labels.path.exists():
            logger.info(f"labels: {labels.path.name}, first for {job.arm}")
            label_data(data, labels.labeller, labels.path, force=plan.dictionary.force)


def _claim(loaded: LoadedPlan) -> None:
    """Note what the shared parts are made from, or see that it is what they were made from."""
    parts = loaded.plan.model_dump(mode="json", include={"prepare", "teacher", "dictionary", "probabilities_top_k"})
    if loaded.plan.teacher is not None and loaded.plan.teacher.recipe is not None:
        parts["teacher"]["recipe"] = loaded.teacher_recipe().model_dump(mode="json")
    record = loaded.output / "shared.json"
    if not record.exists():
        write_json(record, parts)
        return
    found = read_json(record)
    differing = [name for name, value in parts.items() if found.get(name) != value]
    if differing:
        raise CoCoMixError(
            f"{loaded.output} holds a sweep with another {', '.join(differing)}; remove it or choose another --output."
        )
