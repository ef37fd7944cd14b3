"""MkDocs hook: `<!-- benchmark: cpu steps -->` becomes the table of that section of `results/benchmarks/cpu.json`."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

__all__ = ["on_page_markdown", "with_tables"]

_MARK = re.compile(r"<!-- benchmark: (\w+) (\w+) -->")


def with_tables(markdown: str, results: Path) -> str:
    """The text with every mark replaced; `results` is the folder of the benchmarks."""

    def table(mark: re.Match[str]) -> str:
        measured = json.loads((results / f"{mark[1]}.json").read_text(encoding="utf-8"))
        return _table(measured["sections"][mark[2]])

    return _MARK.sub(table, markdown)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by MkDocs with every page's text."""
    return with_tables(markdown, Path(config.config_file_path).parent / "results" / "benchmarks")


def _table(section: dict[str, Any]) -> str:
    machine = section["machine"]
    lines = ["| case | ratio | median | min – max | by FLOPs |", "|---|---|---:|---:|---:|"]
    for ratio in section["ratios"]:
        by_flops = "" if ratio["by_flops"] is None else f"{ratio['by_flops']:.2f}"
        numbers = f"**{ratio['median']:.2f}** | {ratio['minimum']:.2f} – {ratio['maximum']:.2f} | {by_flops}"
        lines.append(f"| {ratio['case']} | {ratio['quantity']} | {numbers} |")
    rounds = "one round" if section["rounds"] == 1 else f"{section['rounds']} rounds"
    where = f"*{section['date']}, {rounds}, {machine['processor']}, {machine['cores']} cores; `{section['command']}`.*"
    return "\n".join([*lines, "", where])
