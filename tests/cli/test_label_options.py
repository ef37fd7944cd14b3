"""Options of `cocomix label` that say how labels are made, without and over a recipe."""

from pathlib import Path
from typing import Any

import pytest

from cocomix.cli.label import LabelOptions
from cocomix.concepts import DictionaryConfig, TeacherConfig
from cocomix.runtime.errors import CoCoMixError


@pytest.fixture(autouse=True)
def fitted_on_layer_7(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.concepts.dictionary_layer", lambda dictionary: 7)


def labeller(**options: Any) -> Any:
    return LabelOptions(**options).labeller()


LABELLED = (
    "data: data/x\nobjective: ntp\nmodel: {backbone: {model_type: gpt2}}\n"
    "labels: {path: x, kind: attribution, k: 3, sign: abs, teacher: {model: t, layer: 5, revision: abc},\n"
    "  dictionary: {path: release, sae_id: hook, fingerprint: f}}\n"
)


def test_from_a_recipe_and_options(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(LABELLED)
    found = labeller(recipe=path)
    assert found.teacher == TeacherConfig(model="t", layer=5, revision="abc")
    assert found.dictionary == DictionaryConfig(path="release", sae_id="hook", fingerprint="f")
    assert found.dictionary.name == "release/hook"
    assert found.k == 3
    changed = labeller(recipe=path, set=["k=2", "sign=logprob"])
    assert (changed.k, changed.sign) == (2, "logprob")
    other = labeller(recipe=path, kind="random", set=["seed=4"])
    assert (other.kind, other.k, other.seed, other.teacher) == ("random", 3, 4, found.teacher)
    with pytest.raises(CoCoMixError, match="selection is not a known field"):
        labeller(recipe=path, set=["selection=random"])
    # Another teacher has other revisions, another dictionary another layer and no sae_id.
    assert labeller(recipe=path, teacher="u").teacher == TeacherConfig(model="u", layer=5)
    assert labeller(recipe=path, teacher="u", revision="def").teacher.revision == "def"
    other = labeller(recipe=path, dictionary="folder")
    assert (other.teacher.layer, other.dictionary) == (7, DictionaryConfig(path="folder"))
    assert labeller(recipe=path, layer=2).teacher.layer == 2


def test_kinds_without_a_teacher_need_and_take_none(tmp_path: Path) -> None:
    found = labeller(kind="future_words", set=["window=8"])
    assert (found.kind, found.window, found.missing()) == ("future_words", 8, ())
    (path := tmp_path / "r.yaml").write_text(LABELLED)
    assert labeller(recipe=path, kind="future_clusters").model_dump(exclude_unset=True) == {
        "kind": "future_clusters",
        "k": 3,
    }


def test_without_a_recipe() -> None:
    found = labeller(teacher="t", dictionary="d")
    assert (found.teacher.layer, found.k) == (7, 4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dictionary": "d"}, "no teacher is given"),
        ({"teacher": "t"}, "no dictionary is given"),
        ({"teacher": "t", "dictionary": "d", "set": ["k"]}, "not of the form"),
        ({"teacher": "t", "dictionary": "d", "set": ["colour=red"]}, "colour is not a known field"),
        ({"teacher": "t", "dictionary": "d", "set": ["k=0"]}, "label settings: k"),
        ({"teacher": "t", "dictionary": "d", "layer": -1}, "layer"),
        ({"set": ["kind=random"]}, "--kind random"),
        ({"kind": "future_wrods"}, "future_wrods"),
        ({"kind": "future_words", "teacher": "t"}, "teacher"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(CoCoMixError, match=match):
        labeller(**changes)
