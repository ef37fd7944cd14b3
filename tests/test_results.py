"""What the pages quote of results/ is what the files there say."""

import ast
import importlib
import importlib.util

import pytest

from tests.documents import ROOT

_SPEC = importlib.util.spec_from_file_location("page", ROOT / "results" / "reproduction" / "page.py")
page = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page)


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_files(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert page.with_tables(text) == text, "run python results/reproduction/page.py"


def test_a_number_changed_by_hand_is_noticed():
    text = page.PAGES[0].read_text(encoding="utf-8")
    loss = f"{page.report(page.SCARCE)['references']['fourgram']:.3f}"
    assert loss in text
    assert page.with_tables(text.replace(loss, "1.234")) == text


def test_intervals_are_those_of_student_t():
    assert page.with_interval([1.0, 2.0, 3.0]) == "+2.000 ± 2.484"  # 4.3027 · 1 / √3
    assert page.with_interval([-0.5]) == "−0.500"


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("results/**/*.py")), ids=lambda path: str(path.relative_to(ROOT / "results"))
)
def test_a_script_asks_for_names_that_are_there(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cocomix"):
            module = importlib.import_module(node.module)
            assert not [each.name for each in node.names if not hasattr(module, each.name)], node.module
