"""Ways to spoil a file: bytes anywhere, values of JSON and YAML, headers of safetensors."""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[..., Any]

WORDS = st.text(alphabet="aé{}[]:,\"'\\\n\t -0.1#&*!%~\x00\ud7ff", max_size=12)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def spoilt_bytes(draw: Draw, data: bytes) -> bytes:
    """One to three cuts, overwritten, inserted or repeated stretches."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        kind = draw(st.sampled_from(["cut", "overwrite", "insert", "remove", "repeat"]))
        if kind == "cut":
            data = data[:place]
        elif kind == "overwrite":
            new = draw(st.binary(min_size=length, max_size=length))
            data = data[:place] + new + data[place + length :]
        elif kind == "insert":
            data = data[:place] + draw(st.binary(max_size=length)) + data[place:]
        elif kind == "remove":
            data = data[:place] + data[place + length :]
        else:
            data = data[: place + length] + data[place:]
    return data


def spoilt_value(draw: Draw, value: Any) -> Any:
    """A copy of a JSON value in which one to three entries, anywhere, are replaced, removed, added or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _somewhere(draw, value)
        if holder is None:
            return draw(VALUES)
        kind = draw(st.sampled_from(["replace", "remove", "add", "duplicate"]))
        if kind == "replace":
            holder[key] = draw(VALUES)
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(WORDS)] = holder[key] if kind == "duplicate" else draw(VALUES)
        else:
            holder.append(holder[key] if kind == "duplicate" else draw(VALUES))
    return value


def _somewhere(draw: Draw, value: Any) -> tuple[Any, Any]:
    """A container within a value and one of its keys."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            places += [(holder, key) for key in keys]
            waiting += [holder[key] for key in keys]
    return draw(st.sampled_from(places)) if places else (None, None)


def spoilt_json(draw: Draw, data: bytes) -> bytes:
    """A JSON file with other values, or with other bytes."""
    if draw(st.booleans()):
        return spoilt_bytes(draw, data)
    return json.dumps(spoilt_value(draw, json.loads(data))).encode()


def spoilt_safetensors(draw: Draw, data: bytes) -> bytes:
    """A safetensors file with another header, another header length, or other bytes."""
    kind = draw(st.sampled_from(["header", "length", "bytes"]))
    if kind == "bytes":
        return spoilt_bytes(draw, data)
    length = int.from_bytes(data[:8], "little")
    if kind == "length":
        return draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    header = json.dumps(spoilt_value(draw, json.loads(data[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
