"""The English documentation on this machine, the embedded corpus `docs:`.

It is Python's own help topics (`pydoc_data.topics`) and the docstrings of the standard library and of every installed
package. Sources are only parsed with `ast`, never imported. One module is one document: its docstrings in the order of
the source, without those that are short, mostly code, or already seen in an earlier module.

Modules come in the order of a hash of their path, so that any stretch of the stream mixes all packages in proportion
to their documentation, and the same set of installed packages always gives the same stream.
"""

import ast
import hashlib
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

MIN_DOCSTRING_CHARACTERS = 160  # shorter docstrings say little more than the name they belong to (our choice)
MIN_PARAGRAPH_CHARACTERS = 80
"""Paragraphs at least this long are kept once only; shorter ones, such as headings, may repeat (our choice)."""
MIN_PROSE_SHARE = 0.7
"""Least share of letters and spaces in a docstring; tables, signatures and examples of code have less (our choice)."""
MAX_SOURCE_BYTES = 1_000_000
"""Larger sources are generated tables, which cost seconds to parse and hold no prose (our choice)."""

_SKIPPED_FOLDERS = re.compile(
    r"\..*|__pycache__|cocomix|idlelib|lib2to3|node_modules|site-packages|tests?|testdata|testing|third_party|_?vendor(ed)?"
)
_TOPICS = "pydoc_data/topics.py"
_NEITHER_LETTER_NOR_SPACE = re.compile(r"[^\w ]+|[\d_]+")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documentation_identity() -> str:
    """SHA-256 (hex) over the names and versions of Python and of the installed packages."""
    folders = [Path(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib")]
    names = sorted({path.name for folder in folders for path in folder.glob("*.dist-info")})
    return hashlib.sha256("\n".join([sys.version, *names]).encode()).hexdigest()


def documentation_texts(roots: list[Path] | None = None) -> Iterator[tuple[str, str]]:
    """Yield name and documentation of every document in the order of the stream; empty where a source has none.

    A name is the path below the folder of its library, the same on every machine; for a help topic, its title follows.
    Of the packages in the folders `roots`; by default the standard library and this interpreter's installed packages.
    """
    if roots is None:
        paths = sysconfig.get_paths()
        roots = [Path(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found: dict[str, Path | str] = {}  # a source file, or the text of a help topic
    for root in dict.fromkeys(root.resolve() for root in roots):
        for path in _sources(root):
            name = path.relative_to(root).as_posix()
            if name == _TOPICS:
                for node in ast.parse(path.read_bytes()).body:
                    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                        for topic, text in ast.literal_eval(node.value).items():
                            found.setdefault(f"{name}:{topic}", text)
            else:
                found.setdefault(name, path)
    seen: set[bytes] = set()
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        document = found[name]
        if isinstance(document, str):
            yield name, _fresh_paragraphs(document, seen)
        else:
            texts = [_fresh_paragraphs(text, seen) for text in _docstrings(document) if _is_prose(text)]
            yield name, "\n\n".join(filter(None, texts))


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _SKIPPED_FOLDERS.fullmatch(name)]
        for name in names:
            if name.endswith(".py") and not name.startswith("test_") and os.path.isfile(os.path.join(folder, name)):
                yield Path(folder, name)


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a module and of every class and function in it, in source order; none where it does not parse."""
    try:
        source = path.read_bytes() if path.stat().st_size <= MAX_SOURCE_BYTES else b""
        if b'"""' not in source and b"'''" not in source:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences of other people's sources
            stack: list[ast.AST] = [ast.parse(source)]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while stack:
        node = stack.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        stack.extend(reversed(children))


def _is_prose(text: str) -> bool:
    other = sum(map(len, _NEITHER_LETTER_NOR_SPACE.findall(text)))
    return len(text) >= MIN_DOCSTRING_CHARACTERS and other <= (1 - MIN_PROSE_SHARE) * len(text)


def _fresh_paragraphs(text: str, seen: set[bytes]) -> str:
    """The text without the long paragraphs that were seen before; these are added to `seen`."""
    kept = []
    for paragraph in _BLANK_LINES.split(text.strip()):
        if len(paragraph) >= MIN_PARAGRAPH_CHARACTERS:
            digest = hashlib.blake2b(" ".join(paragraph.split()).encode("utf-8", "replace"), digest_size=8).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(paragraph)
    fresh = "\n\n".join(kept)
    return fresh if len(fresh) >= MIN_DOCSTRING_CHARACTERS else ""
