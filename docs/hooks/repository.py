"""MkDocs hook: takes what the pages link to outside `docs/` (results, recipes, scripts) into the site.

A page links to such a file by its path in the repository, so that the link also works where the sources are read. Here
a Markdown file becomes a page, a script or recipe a page that shows it, a folder its README or a list of its files, and
everything else is copied; all of it below `repository/`. Links are rewritten accordingly, and those of the pages that
come in are followed too.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["Taken", "on_files", "on_page_markdown"]

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_SHOWN = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text"}
_FOLDER = "repository"


class Taken:
    """What is taken into the site from a repository whose documentation is in `docs/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str | Path] = {}
        """Path in the site's sources → Markdown, or the file to copy."""

    def follow(self, page: str, markdown: str) -> None:
        """Take in what `page` (its path in the site's sources) links to, and what is linked from there."""
        for found in _LINK.finditer(markdown):
            target = self._target(page, found["path"])
            if target is not None:
                self._take(target)

    def rewrite(self, page: str, markdown: str) -> str:
        """The page with its links pointing to what was taken in."""
        here = PurePosixPath(page).parent

        def new(found: re.Match[str]) -> str:
            target = self._target(page, found["path"])
            if target is None:
                return found[0]
            return os.path.relpath(self._place(target), here) + (found["anchor"] or "")

        return _LINK.sub(new, markdown)

    def _target(self, page: str, link: str) -> Path | None:
        """The file or folder of the repository that a link names; None where MkDocs finds it by itself."""
        inside = page.startswith(f"{_FOLDER}/")
        source = self.root / (page.removeprefix(f"{_FOLDER}/") if inside else f"docs/{page}")
        target = Path(os.path.normpath(source.parent / link))
        ours = target.is_relative_to(self.root) and target.exists()
        return target if ours and (inside or not self._documented(target)) else None

    def _documented(self, target: Path) -> bool:
        """Whether MkDocs takes the file for itself; scripts beside the documentation it does not."""
        return target.is_relative_to(self.root / "docs") and target.is_file() and target.suffix not in _SHOWN

    def _place(self, target: Path) -> str:
        """Where a file or folder is in the site's sources."""
        path = target.relative_to(self.root).as_posix()
        if target.is_dir():
            return f"{_FOLDER}/{path}/{'README' if (target / 'README.md').exists() else 'index'}.md"
        if self._documented(target):
            return path.removeprefix("docs/")
        return f"{_FOLDER}/{path}{'.md' if target.suffix in _SHOWN else ''}"

    def _take(self, target: Path) -> None:
        place = self._place(target)
        if place in self.files or not place.startswith(f"{_FOLDER}/"):
            return
        name = target.relative_to(self.root).as_posix()
        if target.is_dir() and (target / "README.md").exists():
            target /= "README.md"
        if target.suffix in _SHOWN:
            text = target.read_text(encoding="utf-8").rstrip()
            self.files[place] = f"# {name}\n\n~~~~{_SHOWN[target.suffix]}\n{text}\n~~~~\n"
        elif target.is_dir() or target.suffix == ".md":
            content = _listing(name, target) if target.is_dir() else target.read_text(encoding="utf-8")
            self.files[place] = content
            self.follow(place, content)
        else:
            self.files[place] = target


def _listing(name: str, folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    return f"# {name}\n\n" + "".join(f"- [{each}]({each})\n" for each in names)


_taken: Taken


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs when it has found the files of the documentation."""
    global _taken
    _taken = Taken(Path(config.config_file_path).parent)
    for file in list(files.documentation_pages()):
        _taken.follow(file.src_uri, file.content_string)
    for place, content in _taken.files.items():
        new = (
            File.generated(config, place, content=content)
            if isinstance(content, str)
            else File.generated(config, place, abs_src_path=str(content))
        )
        files.append(new)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by MkDocs with every page's text."""
    return _taken.rewrite(page.file.src_uri, markdown)
