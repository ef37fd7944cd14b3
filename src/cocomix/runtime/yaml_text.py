"""YAML as recipes and plans are written in it: plain values only, numbers such as 1e-3, no key twice."""

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from cocomix.runtime.errors import CoCoMixError

MAX_VALUES = 100_000  # more values than any recipe or plan has; aliases of aliases double them with every line


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 and people do; YAML 1.1 asks for a dot. Refuses a key that stands twice."""

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = super().construct_yaml_float(node)
        if math.isinf(number) and "inf" not in node.value.lower():
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is too large a number", node.start_mark)
        return float(number)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """YAML as recipes are written in it; `where` it stands is for the refusal if it is none, or expands to too much."""
    try:
        node = yaml.compose(text, _Loader)
        if node is not None and _expanded_size(node, {}) > MAX_VALUES:
            raise CoCoMixError(f"{where} has aliases that stand for more than {MAX_VALUES:,} values; write less.")
        return None if node is None else _Loader("").construct_document(node)
    except CoCoMixError:
        raise
    except yaml.YAMLError as error:
        raise CoCoMixError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise CoCoMixError(
            f"{where} is not valid YAML: it must not be nested within itself, or hundreds of levels deep."
        ) from None
    except (ValueError, OverflowError) as error:
        raise CoCoMixError(f"{where} holds a number that cannot be read ({error}); write it in digits.") from None


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node holds once every alias is written out, as it is saved again; `sizes` of others by `id`."""
    if id(node) not in sizes:
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = () if isinstance(node, yaml.ScalarNode) else inner
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return sizes[id(node)]


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `parse_yaml` reads back as the same values, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
