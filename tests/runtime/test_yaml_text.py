import time

import pytest

from cocomix.runtime import yaml_text
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.yaml_text import dump_yaml, parse_yaml


def bomb(levels: int) -> str:
    """A few hundred bytes that stand for 9 ** levels values."""
    lines = [f"a0: &a0 [{', '.join('x' * 9)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_numbers_without_a_dot_and_back() -> None:
    values = {"a": 1e-3, "b": "1e-3", "c": [1, None, True], "d": {"e": 2.5}}
    assert parse_yaml(dump_yaml(values), "here") == values
    assert parse_yaml("lr: 1e-3", "here") == {"lr": 0.001}
    assert parse_yaml("", "here") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(9), "here has aliases"),
        ("x: &a [*a]", "nested"),
        ("x: " + "[" * 5000, "nested"),
        ("x: 1e400", "1e400 is too large"),
        ("x: " + "9" * 5000, "number"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("a: [", "here is not valid YAML"),
    ],
)
def test_what_is_refused_in_one_sentence_and_at_once(text: str, says: str) -> None:
    started = time.process_time()
    with pytest.raises(CoCoMixError, match=says) as error:
        parse_yaml(text, "here")
    assert "\n" not in str(error.value)
    assert time.process_time() - started < 5


def test_a_few_aliases_are_fine() -> None:
    assert parse_yaml(bomb(3), "here")["a2"][0][0] == ["x"] * 9
    assert yaml_text.MAX_VALUES > 9**4
    assert parse_yaml("x: .inf", "here") == {"x": float("inf")}
