"""YAML as recipes and plans are written in it: plain values only, numbers such as 1e-3, no key twice."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from cocomix.runtime.errors import CoCoMixError

__all__ = ["dump_yaml", "parse_yaml"]


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 and people do; YAML 1.1 asks for a dot. Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """YAML as recipes are written in it; `where` it stands is for the refusal.

    Raises:
        CoCoMixError: it is no YAML, or a key stands twice.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise CoCoMixError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that `parse_yaml` reads back as the same values, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
