"""How far a narrow number format changes labels, and when it is refused."""

import pytest
import torch

from cocomix.concepts import (
    AttributionSettings,
    ConceptTeacher,
    label_agreement,
    measure_agreement,
    require_agreement,
)
from cocomix.runtime.console import SilentReporter
from cocomix.runtime.errors import CoCoMixError

from .conftest import VOCAB, make_dictionary, make_model


@pytest.fixture
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.fixture
def tokens():
    return torch.randint(1, VOCAB, (6, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_is_the_share_of_equal_sets(teacher, tokens, dtype):
    settings = AttributionSettings(dtype=dtype)
    found = measure_agreement(teacher, tokens, 4, settings, batch_size=4)
    narrow = torch.cat([teacher.label(rows, settings=settings).ids for rows in torch.split(tokens, 4)])
    exact = torch.cat([teacher.label(rows).ids for rows in torch.split(tokens, 4)])
    assert found == label_agreement(narrow, exact)
    equal = [
        set(a.tolist()) == set(b.tolist())
        for a, b in zip(narrow.flatten(0, 1), exact.flatten(0, 1), strict=True)
        if (a != -100).any() or (b != -100).any()
    ]
    assert found == pytest.approx(sum(equal) / len(equal))
    assert found > 0.5


def test_float16_rounds_less_than_bfloat16_and_float32_not_at_all(teacher, tokens):
    shares = [
        measure_agreement(teacher, tokens, 4, AttributionSettings(dtype=dtype))
        for dtype in ("bfloat16", "float16", "float32")
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1.0


def test_a_format_that_changes_labels_is_refused_or_forced():
    class Heard(SilentReporter):
        warnings: list[str] = []  # noqa: RUF012

        def warn(self, message):
            self.warnings.append(message)

    require_agreement(0.99, "bfloat16")
    with pytest.raises(CoCoMixError, match=r"in bfloat16 the teacher gives 90\.0% .*; label with dtype float32, or"):
        require_agreement(0.9, "bfloat16")
    require_agreement(0.9, "bfloat16", force=True, reporter=Heard())
    assert len(Heard.warnings) == 1
    assert "90.0%" in Heard.warnings[0]


def test_values_beyond_float16_are_refused_in_a_sentence(tokens):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight *= 1e6
    teacher = ConceptTeacher(model, make_dictionary(), 1, name="tiny")
    with pytest.raises(CoCoMixError, match="of the teacher tiny is not finite; try another dtype"):
        teacher.label(tokens, settings=AttributionSettings(dtype="float16"))
