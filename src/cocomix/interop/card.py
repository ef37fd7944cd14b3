"""The model card of an export: what somebody who was handed the model needs to know, as far as the run says it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined  # comes with PyTorch
from transformers import PreTrainedModel

from cocomix.artifacts import read_json
from cocomix.data import Tokens
from cocomix.evaluation import PAPER_TASKS, Run, evaluations_of
from cocomix.evaluation.downstream import read_downstream
from cocomix.evaluation.pages import duration, markdown_text, percent, si, signed
from cocomix.labelling import Labels
from cocomix.model import MIXINGS, CoCoMixConfig
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe


def public_name(name: str) -> str:
    """A hub name as it is; of a path on this machine, which is nobody else's business, the last part."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name


def render_card(template: str, header: dict[str, Any], **values: Any) -> str:
    """A card from a template of `templates/`, with YAML front matter of what is set in its header."""
    environment = Environment(
        loader=PackageLoader("cocomix.interop"),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, which the filter md escapes
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        **{"md": lambda value: markdown_text(str(value)), "count": "{:,}".format, "public": public_name},
        **{"duration": duration, "percent": percent, "si": si, "signed": signed},
    }
    front = yaml.safe_dump({key: each for key, each in header.items() if each}, sort_keys=False, allow_unicode=True)
    card: str = environment.get_template(template).render(front=front, **values)
    return card


def model_card(
    run: Run,
    *,
    decoder: PreTrainedModel | None = None,
    license: str | None = None,
    languages: tuple[str, ...] = (),
) -> str:
    """The card as Markdown with YAML front matter, for the hub's `README.md`: of a run, or of the decoder alone.

    Data, labels, evaluations and benchmark results of the run add to it where they are there.
    """
    recipe, manifest = load_recipe(run.path / "recipe.yaml"), run.manifest
    config = read_json(run.path / "config.json") if decoder is None else decoder.config.to_dict()
    counts = manifest.parameters.model_dump()
    if decoder is not None:
        counts = dict.fromkeys(counts, decoder.num_parameters())
    hashes = {manifest.data.fingerprint, None if manifest.labels is None else manifest.labels.fingerprint}

    def still_there(open_one: Callable[[Path], Any], folders: Iterable[Path]) -> list[Any]:
        """Manifests of what is where the run found it and still the same; of a mixture's parts no hash is recorded."""
        found = []
        for folder in folders:
            try:
                opened = open_one(folder)
            except CoCoMixError:
                continue
            if manifest.data.mixture is not None or opened.manifest.fingerprint in hashes:
                found.append(opened.manifest)
        return found

    data = still_there(Tokens.open, recipe.data_folders)
    header: dict[str, Any] = {
        "language": list(languages),
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(("cocomix", recipe.objective))),
        "datasets": sorted({source.name for meta in data for source in meta.sources if source.kind == "hub"}),
    }
    return render_card(
        "model_card.md",
        header,
        manifest=manifest,
        recipe=recipe,
        config=config,
        parameters=counts,
        concepts=config["model_type"] == CoCoMixConfig.model_type,
        described=MIXINGS[manifest.mixing].described if manifest.mixing is not None else "",
        # positions of a token in the blocks above the mixing, each time these run
        passes=0 if manifest.mixing is None else sum(recipe.model.form.passes(recipe.model)),
        settings=_settings(recipe),
        data=data,
        labels=still_there(Labels.open, recipe.label_folders),
        final=manifest.final.model_dump(),
        perplexity=run.perplexity,
        measured=next((one for one in evaluations_of(run) if one.data_fingerprint == manifest.data.fingerprint), None),
        downstream=read_downstream(run.path),
        paper_tasks=PAPER_TASKS,
        license=license,
    )


def _settings(recipe: RunConfig) -> str:
    """What the recipe set that is an arm's own, as YAML, its paths as `public_name`s."""
    values = recipe.model_dump(mode="json", include={"objective", "baseline", "labels", "training"})
    values["labels"] = _public(values["labels"])
    return yaml.safe_dump({name: value for name, value in values.items() if value is not None}, sort_keys=False)


def _public(value: Any) -> Any:
    """A setting with the paths in it as `public_name`s, what is not set left out."""
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items() if inner is not None}
    return public_name(value) if isinstance(value, str) else value
