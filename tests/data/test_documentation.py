import sys
from pathlib import Path

from cocomix.data.documentation import documentation_texts

LONG = "This sentence explains in plain words what the function is for and what a caller should know about it. "


def write(root: Path, name: str, source: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def library(root: Path) -> Path:
    write(
        root,
        "one/a.py",
        f'''"""Module a. {LONG * 2}"""
class A:
    """Class A. {LONG * 2}"""
    def f(self):
        """Method f. {LONG * 2}"""
if True:
    def g():
        """Function g. {LONG * 2}"""
''',
    )
    write(root, "one/b.py", f'"""Module b.\n\n{LONG * 2}\n\nOnly here: {LONG * 2}"""\n')
    write(root, "two/c.py", f'"""Module c.\n\n{LONG * 2}\n\nOnly in c: {LONG * 2}"""\n')
    write(root, "two/short.py", '"""Too short."""\n')
    write(root, "two/table.py", '"""' + "+---+---+ 12 | 34 |\n" * 30 + '"""\n')
    write(root, "two/broken.py", f'"""{LONG * 2}"""\ndef (:\n')
    write(root, "two/effect.py", f'"""{LONG} Importing this fails. {LONG}"""\nraise SystemExit("imported")\n')
    write(root, "two/tests/d.py", f'"""In tests. {LONG * 2}"""\n')
    write(root, "two/_vendor/e.py", f'"""Vendored. {LONG * 2}"""\n')
    write(root, "two/test_f.py", f'"""A test. {LONG * 2}"""\n')
    write(
        root,
        "pydoc_data/topics.py",
        f'topics = {{"if": "The if statement. {LONG * 2}", "for": "The for. {LONG * 3}"}}\n',
    )
    return root


def read(root: Path) -> dict[str, str]:
    return dict(documentation_texts([root]))


def test_docstrings_in_source_order_without_importing(tmp_path: Path) -> None:
    before = set(sys.modules)
    found = read(library(tmp_path))
    starts = [paragraph.split(". ")[0] for paragraph in found["one/a.py"].split("\n\n")]
    assert starts == ["Module a", "Class A", "Method f", "Function g"]
    assert found["two/effect.py"].startswith(LONG)
    assert not {"one", "two", "pydoc_data.topics"} & (set(sys.modules) - before)


def test_what_is_not_prose_is_left_out(tmp_path: Path) -> None:
    found = read(library(tmp_path))
    assert {name for name, text in found.items() if not text} == {"two/short.py", "two/table.py", "two/broken.py"}
    assert not any("tests" in name or "_vendor" in name or "test_f" in name for name in found)


def test_help_topics_are_documents_of_their_own(tmp_path: Path) -> None:
    found = read(library(tmp_path))
    assert found["pydoc_data/topics.py:if"].startswith("The if statement.")
    assert found["pydoc_data/topics.py:for"].startswith("The for.")


def test_a_paragraph_is_kept_once(tmp_path: Path) -> None:
    found = read(library(tmp_path))
    kept = [name for name in ("one/b.py", "two/c.py") if LONG * 2 in found[name].split("\n\n")]
    assert len(kept) == 1
    assert "Only here" in found["one/b.py"]
    assert "Only in c" in found["two/c.py"]


def test_the_order_is_that_of_the_names_alone(tmp_path: Path) -> None:
    first = list(read(library(tmp_path / "x")))
    second = list(read(library(tmp_path / "y" / "z")))
    assert first == second
    assert first != sorted(first)


def test_this_machine_has_documentation() -> None:
    names, texts = [], []
    for name, text in documentation_texts():
        names.append(name)
        texts.append(text)
        if sum(map(len, texts)) > 200_000:
            break
    assert " the " in "".join(texts)
    packages = {name.split("/")[0] for name in names}
    assert len(packages) > 5  # the beginning of the stream is a mixture of packages
