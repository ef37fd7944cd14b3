"""MkDocs hook: adds the generated pages of `reference/` to the site; none of them is in the repository."""

import os

from api_reference import api_pages
from cli_reference import cli_page
from configuration_reference import Part, configuration_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

__all__ = ["on_files", "reference_pages"]


KINDS = (
    *("attribution", "activation", "contextual", "random", "token_lookup"),
    *("future_words", "future_clusters", "online"),
)


def reference_pages() -> dict[str, str]:
    """Path below the documentation's folder → Markdown."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from cocomix.cli import app
    from cocomix.concepts import FitSettings, labeller_config_type
    from cocomix.data import PrepareSettings
    from cocomix.experiments import SweepPlan
    from cocomix.training.arguments import DEFAULTS
    from cocomix.training.recipe import RunConfig

    parts = [
        Part("A recipe", "What `cocomix train` reads.", RunConfig),
        *(
            Part(f"Labels: {kind}", f"`labels: {{kind: {kind}}}` in a recipe, and `--set` of `cocomix label`.", config)
            for kind in KINDS
            for config in [labeller_config_type(kind)]
        ),
        Part("A plan", "What `cocomix sweep` reads.", SweepPlan),
        Part("Preparing data", "`prepare:` in a plan, and the options of `cocomix prepare`.", PrepareSettings),
        Part("Fitting a dictionary", "The options of `cocomix sae`, and part of `dictionary:` in a plan.", FitSettings),
    ]
    pages = {"reference/cli.md": cli_page(app), "reference/configuration.md": configuration_page(parts, DEFAULTS)}
    return pages | {f"reference/api/{room}.md": page for room, page in api_pages().items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs when it has found the files of the documentation."""
    for path, content in reference_pages().items():
        files.append(File.generated(config, path, content=content))
    return files
