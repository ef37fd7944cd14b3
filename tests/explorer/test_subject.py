import shutil

import pytest

from cocomix.explorer import open_subject
from cocomix.explorer.teacher_side import TeacherSide
from cocomix.interpret import default_atlas_folder
from cocomix.runtime.errors import CoCoMixError
from tests.workshop import CONCEPTS


def test_everything_beside_a_run_is_found(subject, roomy):
    assert subject.atlas is not None
    assert subject.atlas.num_concepts == subject.num_concepts == CONCEPTS
    assert isinstance(subject.teacher, TeacherSide)
    assert subject.comparison is not None
    assert list(subject.comparison.curves) == ["mixed", "plain"]
    assert subject.names([3, 5]) == {3: subject.atlas.name(3), 5: subject.atlas.name(5)}


def test_a_run_alone(bare):
    assert (bare.atlas, bare.comparison) == (None, None)
    assert bare.teacher.startswith("The teacher is not at hand: ")
    assert bare.names([3]) == {3: ""}


def test_without_an_atlas_concepts_are_called_by_the_tokens_they_label(roomy, tmp_path):
    shutil.copytree(roomy.cocomix_run, tmp_path / "run")
    names = open_subject(tmp_path / "run").names(range(CONCEPTS))
    assert any("·" in name for name in names.values())
    assert set(names) == set(range(CONCEPTS))


def test_a_run_without_concepts_is_refused(roomy):
    with pytest.raises(CoCoMixError, match="has no concepts"):
        open_subject(roomy.ntp_run)


def test_the_atlas_of_another_run_is_refused(subject, workshop):
    with pytest.raises(CoCoMixError, match="another run"):
        open_subject(workshop.cocomix_run, atlas=subject.atlas.path)
    assert subject.atlas.path == default_atlas_folder(subject.run.path)


def test_a_run_of_other_data_cannot_be_compared(roomy, workshop):
    with pytest.raises(CoCoMixError, match="cannot be compared"):
        open_subject(roomy.cocomix_run, compare_with=[workshop.ntp_run])


def test_a_teacher_that_was_named_must_be_there(roomy, tmp_path):
    with pytest.raises(CoCoMixError):
        open_subject(roomy.cocomix_run, dictionary=str(tmp_path))


@pytest.mark.parametrize("value", [-1, CONCEPTS, 1.5, "x", "", float("nan"), "1e400", None])
def test_concepts_that_do_not_exist(subject, value):
    with pytest.raises(CoCoMixError, match=f"0 to {CONCEPTS - 1}"):
        subject.concept(value)
