"""Rooms whose names are imported when they are first used, so that what needs no PyTorch does not load it."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import getsource
from typing import Any


def lazily(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: it imports what the package itself imports only `if TYPE_CHECKING`."""
    blocks = [node.body for node in ast.parse(getsource(sys.modules[package])).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    module_of = {alias.name: node.module for node in imports for alias in node.names if node.module is not None}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return get
