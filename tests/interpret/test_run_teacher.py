import json
import shutil
from pathlib import Path

import pytest
import yaml

from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.interpret import open_run_teacher
from cocomix.runtime.errors import CoCoMixError


def moved(run: Path, folder: Path, *, labels: str | None = None, **recipe: object) -> Path:
    """A copy of a run whose labels have gone, or whose recipe says more."""
    shutil.copytree(run, folder)
    if labels is not None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["labels"]["path"] = labels
        (folder / "manifest.json").write_text(json.dumps(manifest))
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**values, **recipe}))
    return folder


def test_teacher_and_dictionary_are_found_where_the_run_says(workshop, tmp_path):
    data = Tokens.open(workshop.data)
    source = {"teacher": {"model": str(workshop.teacher), "layer": 1}, "dictionary": {"path": str(workshop.dictionary)}}
    by_labels = open_run_teacher(Run.open(workshop.cocomix_run), data)
    by_recipe = open_run_teacher(Run.open(moved(workshop.cocomix_run, tmp_path / "a", labels="online", **source)), data)
    for found in (by_labels, by_recipe):
        assert found.teacher.layer == 1
        assert found.teacher.name == str(workshop.teacher)
        assert found.teacher.dictionary.fingerprint() == by_labels.teacher.dictionary.fingerprint()
    lost = Run.open(moved(workshop.cocomix_run, tmp_path / "b", labels=str(tmp_path / "gone")))
    with pytest.raises(CoCoMixError, match="--dictionary"):
        open_run_teacher(lost, data)
    with pytest.raises(CoCoMixError, match="label folder"):
        open_run_teacher(lost, data, teacher=str(workshop.teacher), dictionary=str(workshop.dictionary))


def test_a_dictionary_of_other_concepts_is_refused(workshop, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(workshop.dictionary, tmp_path / "other")
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    (other / "manifest.json").unlink()
    with pytest.raises(CoCoMixError, match=r"labels"):
        open_run_teacher(Run.open(workshop.cocomix_run), Tokens.open(workshop.data), dictionary=str(other))
