"""The code of an export: our own modules, and nothing of cocomix left in their imports."""

import ast
import inspect
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from cocomix.interop.repository import AUTO_MAP, LICENSE_FILE, source_files, write_source_files
from cocomix.model import predictor

HERE_BY_NATURE = {"torch", "transformers"}


def test_the_files_are_our_modules(tmp_path: Path) -> None:
    files = source_files()
    assert {
        "modeling_cocomix.py",
        "configuration_cocomix.py",
        "predictor_cocomix.py",
        "errors_cocomix.py",
    } <= files.keys()
    assert not {"accounting_cocomix.py", "__init___cocomix.py"} & files.keys()  # not needed to run a model
    own = [line for line in inspect.getsource(predictor).splitlines() if not line.startswith("from cocomix")]
    exported = [line for line in files["predictor_cocomix.py"].splitlines()[1:] if not line.startswith("from .")]
    assert exported == own
    assert files["predictor_cocomix.py"].startswith("# cocomix.model.predictor of cocomix ")


def test_they_import_torch_transformers_and_one_another() -> None:
    import sys

    files = source_files()
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                roots = {module.split(".")[0] for module in modules}
                assert roots <= HERE_BY_NATURE | sys.stdlib_module_names, (name, roots)


def test_transformers_finds_them_all(tmp_path: Path) -> None:
    """What its loader copies, starting from the two entries of `auto_map`, are all files that were written."""
    write_source_files(tmp_path)
    entries = {tmp_path / f"{reference.split('.')[0]}.py" for reference in AUTO_MAP.values()}
    found = {Path(path) for entry in entries for path in get_relative_import_files(entry)} | entries
    assert found == set(tmp_path.glob("*.py"))
    assert "MIT" in (tmp_path / LICENSE_FILE).read_text()
