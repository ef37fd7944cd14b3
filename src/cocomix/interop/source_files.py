"""The model's code as flat files that transformers loads by itself, made from this package's own modules.

Transformers copies the files that a repository's `auto_map` names, and every file these import as `from .name import`,
into a folder of its own and imports them from there. So a module `cocomix.model.predictor` becomes
`predictor_cocomix.py`, an import of it becomes `from .predictor_cocomix import …`, and nothing else changes.
"""

import ast
import inspect
import re
from importlib import import_module
from importlib.metadata import distribution, version
from pathlib import Path

from cocomix.artifacts import write_text
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM

_PACKAGE = "cocomix"
_OWN_IMPORT = re.compile(rf"^from ({_PACKAGE}\.[\w.]+) import ", re.MULTILINE)

LICENSE_FILE = "LICENSE.code"
"""The licence of these files; that of the weights is another matter."""


def _flat(module: str) -> str:
    """`cocomix.model.predictor` → `predictor_cocomix`."""
    return f"{module.rpartition('.')[2]}_{_PACKAGE}"


AUTO_MAP = {
    auto: f"{_flat(kind.__module__)}.{kind.__name__}"
    for auto, kind in (("AutoConfig", CoCoMixConfig), ("AutoModelForCausalLM", CoCoMixForCausalLM))
}
"""What `config.json` says about where the classes are."""


def source_files() -> dict[str, str]:
    """File names and texts of the modules that configuration and model need, found by following their imports."""
    modules = [CoCoMixConfig.__module__, CoCoMixForCausalLM.__module__]
    texts: dict[str, str] = {}
    for module in modules:  # grows while it is walked
        source = inspect.getsource(import_module(module))
        modules += [found for found in dict.fromkeys(_OWN_IMPORT.findall(source)) if found not in modules]
        text = _header(module) + _OWN_IMPORT.sub(lambda found: f"from .{_flat(found[1])} import ", source)
        _check_imports(module, text)
        texts[f"{_flat(module)}.py"] = text
    assert len(texts) == len(modules), "two modules have one file name"
    return texts


def write_source_files(folder: Path) -> None:
    """Write the files, and the licence they come under, into a folder."""
    for name, text in source_files().items():
        write_text(folder / name, text)
    licence = distribution(_PACKAGE).read_text("licenses/LICENSE")
    assert licence is not None
    write_text(folder / LICENSE_FILE, licence)


def _header(module: str) -> str:
    return (
        f"# {module} of cocomix {version(_PACKAGE)}, written by `cocomix export`; its licence is in {LICENSE_FILE}.\n"
    )


def _check_imports(module: str, text: str) -> None:
    """Assert that no import of the package is left, in whichever form it was written."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level in (0, 1), module
            names = [node.module or ""] if node.level == 0 else []
        assert not any(name.split(".")[0] == _PACKAGE for name in names), module
