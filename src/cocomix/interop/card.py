"""The model card of an export: what somebody who was handed the model needs to know, as far as the run says it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from cocomix.artifacts import read_json
from cocomix.data import Tokens, TokensManifest
from cocomix.evaluation import PAPER_TASKS, Downstream, Run, RunEvaluation, Table, evaluations_of
from cocomix.evaluation.downstream import read_downstream
from cocomix.evaluation.formatting import duration, markdown_text, percent, si, signed
from cocomix.labelling import Labels, LabelsManifest
from cocomix.model import MIXINGS, CoCoMixConfig
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe

_PAPER = "https://arxiv.org/abs/2502.08524"
Rows = list[tuple[str, str]]
Found = TypeVar("Found")


class RunRecord(NamedTuple):
    """A run with its surroundings.

    Attributes:
        recipe: as it was resolved when the run started.
        config: the model's `config.json`.
        final: the last evaluation, by the names of its metrics.
        versions: of PyTorch and transformers.
        data: of every corpus that is still where the run found it and still the same.
        labels: of every label folder, likewise.
        evaluation: what `cocomix eval` measured, if it did.
        downstream: benchmark results, if there are any.
    """

    run: Run
    recipe: RunConfig
    config: dict[str, Any]
    final: dict[str, float]
    versions: dict[str, str]
    data: tuple[TokensManifest, ...]
    labels: tuple[LabelsManifest, ...]
    evaluation: RunEvaluation | None
    downstream: Downstream | None


def read_record(run: Run) -> RunRecord:
    """Collect what is known of a run; data and labels that are gone or have changed are left out.

    Raises:
        CoCoMixError: a file of the run itself is damaged.
    """
    recipe = load_recipe(run.path / "recipe.yaml")
    data = [_found(Tokens.open, path) for path in recipe.data_folders]
    labels = [_found(Labels.open, path) for path in recipe.label_folders]
    return RunRecord(
        run,
        recipe,
        read_json(run.path / "config.json"),
        run.manifest.final.model_dump(),
        run.manifest.versions,
        tuple(opened.manifest for opened in data if opened is not None and _is_of(run, opened.manifest.fingerprint)),
        tuple(found.manifest for found in labels if found is not None and _is_of(run, found.fingerprint)),
        next(iter(evaluations_of(run)), None),
        read_downstream(run.path),
    )


def public_name(name: str) -> str:
    """A hub name as it is; of a path on this machine, which is nobody else's business, the last part."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name


def _is_of(run: Run, fingerprint: str) -> bool:
    """Whether the run was made with data or labels of this fingerprint; of a mixture's parts none are recorded."""
    manifest = run.manifest
    recorded = {manifest.data.fingerprint, None if manifest.labels is None else manifest.labels.fingerprint}
    return manifest.data.mixture is not None or fingerprint in recorded


def _found(read: Callable[[Path], Found], path: Path) -> Found | None:
    try:
        return read(path)
    except CoCoMixError:
        return None


def model_card(run: Run, *, license: str | None = None, languages: tuple[str, ...] = ()) -> str:
    """The card as Markdown with YAML front matter, for the hub's `README.md`.

    Args:
        run: a finished run; data, labels, evaluations and benchmark results add to the card where they are there.
        license: of the weights, as the hub names licences.
        languages: of the text.

    Raises:
        CoCoMixError: a file of the run is damaged.
    """
    record = read_record(run)
    concepts = record.config["model_type"] == CoCoMixConfig.model_type
    sections = [
        _front_matter(record, license, languages),
        f"# {markdown_text(run.manifest.name)}",
        _introduction(record),
        "## Use",
        _use(record, concepts),
        "## Model",
        _table(_model_rows(record)),
        "## Training",
        _table(_training_rows(record)),
        _settings(record),
    ]
    if teaching := _concept_rows(record):
        sections += ["## Teacher and concepts", _table(teaching)]
    sections += ["## Results", _results(record), "## Limits", _limits(record, concepts), "## Licence"]
    sections += [_licence(license, concepts), "## Origin", _table(_origin_rows(record))]
    return "\n\n".join(sections) + "\n"


def _front_matter(record: RunRecord, license: str | None, languages: tuple[str, ...]) -> str:
    sources = [source for meta in record.data for source in meta.sources]
    values: dict[str, Any] = {
        "language": list(languages),
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(("cocomix", record.recipe.objective))),
        "datasets": sorted({source.name for source in sources if source.kind == "hub"}),
    }
    kept = {name: value for name, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---"


def _introduction(record: RunRecord) -> str:
    manifest = record.run.manifest
    tokens = f"{si(manifest.tokens)} tokens".replace("  ", " ")
    if record.config["model_type"] != CoCoMixConfig.model_type:
        return f"A plain decoder, pretrained on {tokens} to predict the next token. Trained as *{manifest.arm}*."
    return (
        f"A language model pretrained on {tokens} with [CoCoMix]({_PAPER}): half-way up it predicts concepts of a "
        f"frozen teacher's sparse autoencoder, and mixes them in. Trained as *{manifest.arm}*."
    )


def _use(record: RunRecord, concepts: bool) -> str:
    trust = ", trust_remote_code=True" if concepts else ""
    needed = record.versions.get("transformers", "")
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'where = "."  # this folder, or its name on the hub',
        f"model = AutoModelForCausalLM.from_pretrained(where{trust})",
        f"tokenizer = AutoTokenizer.from_pretrained(where{trust})",
        'prompt = tokenizer("The function returns", return_tensors="pt")',
        "text = tokenizer.decode(model.generate(**prompt, max_new_tokens=32, do_sample=True)[0])",
    ]
    if record.recipe.has_concepts and record.recipe.model.form.mixes_in:
        lines += [
            "",
            "# Turn concept 7 up five times:",
            "import sys",
            'edit = sys.modules[type(model).__module__].ConceptEdit(7, "scale", 5.0)',
            "steered = tokenizer.decode(model.generate(**prompt, max_new_tokens=32, concept_edits=[edit])[0])",
        ]
    code = "The classes come with this repository. " if concepts else ""
    return f"{code}Made and tried with transformers {needed}.\n\n```python\n" + "\n".join(lines) + "\n```"


def _model_rows(record: RunRecord) -> Rows:
    config, manifest = record.config, record.run.manifest
    backbone = config.get("backbone", config)
    rows = [
        ("decoder", str(backbone["model_type"])),
        ("parameters", f"{manifest.parameters.total:,}"),
        ("of these active per token", f"{manifest.parameters.active:,}"),
        ("context", f"{manifest.data.block_size:,} tokens"),
    ]
    if manifest.mixing is not None:
        rows.append(("form", f"{manifest.mixing}: {MIXINGS[manifest.mixing].described}"))
        rows.append(("mixed in before block", f"{config['insert_layer']} (counted from 0)"))
    if record.recipe.has_concepts:
        rows.append(("concepts", f"{config['num_concepts']:,}, the {config['concept_topk']} strongest mixed in"))
    return rows


def _training_rows(record: RunRecord) -> Rows:
    manifest = record.run.manifest
    rows: Rows = []
    if manifest.data.mixture is not None:
        shares = [f"{percent(part.share)} {public_name(part.path)}" for part in manifest.data.mixture]
        rows.append(("mixture", ", ".join(shares)))
    rows += [("text", text) for text in _sources(record)]
    if not record.data:
        rows.append(("text", "not recorded with the run"))
    rows += [("tokenizer", public_name(meta.tokenizer_name)) for meta in record.data[:1]]
    rows += [
        ("tokens", f"{manifest.tokens:,} in {manifest.steps:,} steps"),
        ("learning rate", f"{manifest.learning_rate}"),
        ("weight of the concept loss", f"{manifest.concept_loss_weight}"),
        ("training FLOP", si(manifest.flops_per_token.training * manifest.tokens)),
        ("time", f"{duration(manifest.seconds)} on {manifest.device}, {manifest.training_dtype}"),
        ("seed", str(manifest.seed)),
    ]
    return [(name, value) for name, value in rows if value != "None"]


def _sources(record: RunRecord) -> Iterable[str]:
    for meta in record.data:
        taken = [source for source in meta.sources if source.documents > 0]
        for source in taken[:10]:
            yield f"{public_name(source.name)}: {source.documents:,} documents, {source.bytes:,} bytes"
        if len(taken) > 10:
            yield f"and {len(taken) - 10:,} more sources"


def _settings(record: RunRecord) -> str:
    recipe = record.recipe.model_dump(mode="json", include={"objective", "baseline", "labels", "training"})
    recipe["labels"] = _public(recipe["labels"])
    text = yaml.safe_dump({name: value for name, value in recipe.items() if value is not None}, sort_keys=False)
    return f"What the recipe set, beside the defaults of cocomix:\n\n```yaml\n{text}```"


def _public(value: Any) -> Any:
    """A setting with the paths in it as `public_name`s, what is not set left out."""
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items() if inner is not None}
    return public_name(value) if isinstance(value, str) else value


def _concept_rows(record: RunRecord) -> Rows:
    """The teacher, its dictionary and the labels, as far as they are recorded; empty for a run without a teacher."""
    recipe, rows = record.recipe, []
    for labels in record.labels:
        made, counts, hashes = labels.labels, labels.statistics, labels.made_from
        if made.get("teacher"):
            rows.append(("teacher", f"{public_name(made['teacher']['model'])}, block {made['teacher']['layer']}"))
            rows.append(("fingerprint of the teacher", hashes["weights"]))
        if made.get("dictionary"):
            rows.append(("dictionary", _dictionary_name(made["dictionary"]["path"], made["dictionary"]["sae_id"])))
            rows.append(("fingerprint of the dictionary", hashes["dictionary"]))
        others = {name: value for name, value in made.items() if name in ("activation", "gradient", "sign", "seed")}
        how = ", ".join(f"{name}: {value}" for name, value in others.items())
        rows += [
            ("labels", f"{labels.k} per token by {made['kind']}" + (f" ({how})" if how else "")),
            ("labelled tokens", f"{counts.labelled_positions:,}, {counts.masked_positions:,} without a label"),
            ("concepts that occur", f"{counts.distinct_concepts:,} of {labels.num_concepts:,}"),
        ]
    named = recipe.labels
    teacher = recipe.teacher if named is None or named.teacher is None else named.teacher
    if not rows and teacher is not None:
        rows.append(("teacher", f"{public_name(teacher.model)}, block {teacher.layer}"))
        if teacher.revision is not None:
            rows.append(("revision of the teacher", teacher.revision))
    if not record.labels and named is not None and named.dictionary is not None:
        rows.append(("dictionary", _dictionary_name(named.dictionary.path, named.dictionary.sae_id)))
    if not rows and recipe.has_concepts:
        rows.append(("teacher and dictionary", "their records were not where the run found them"))
    if recipe.distillation is not None:
        rows.append(("distillation", f"of the teacher's next-token predictions, weight {recipe.distillation.weight}"))
    return rows


def _dictionary_name(path: str, sae_id: str | None) -> str:
    return " ".join(filter(None, (public_name(path), sae_id)))


def _results(record: RunRecord) -> str:
    manifest, final = record.run.manifest, record.final
    rows = [
        ("validation loss, nats per token", f"{final['eval_loss']:.4f}"),
        ("perplexity", f"{record.run.perplexity:.2f}"),
        ("on validation tokens", f"{manifest.evaluation_blocks * manifest.data.block_size:,}"),
    ]
    if "eval_concept_recall" in final:
        rows.append(("concept recall", percent(final["eval_concept_recall"])))
    text = ["At the end of training:", _table(rows)]
    if (measured := record.evaluation) is not None:
        rows = [("loss, nats per token", f"{measured.loss:.4f}"), ("tokens", f"{measured.targets:,}")]
        if measured.references is not None:
            rows.append(("loss of a bigram table of the training tokens", f"{measured.references.bigram:.4f}"))
        if measured.bits_per_byte is not None:
            rows.append(("bits per byte", f"{measured.bits_per_byte:.4f}"))
        concepts = measured.concepts
        if (
            concepts is not None
            and concepts.recall_at_32 is not None
            and (content := concepts.label_content) is not None
        ):
            rows += [
                ("concept recall@32", percent(concepts.recall_at_32)),
                ("the same of a static list of concepts", percent(content.static_recall_at_32)),
                ("the same of a table of the current token", percent(content.token_recall_at_32)),
            ]
        kinds = {} if measured.reliance is None else measured.reliance.kinds
        rows += [(f"loss when concepts are replaced ({kind})", signed(each.nats)) for kind, each in kinds.items()]
        text += [f"`cocomix eval` on the {measured.split} split:", _table(rows)]
    if record.downstream is not None:
        shown = [(name, PAPER_TASKS[name].metric, record.downstream.value(name)) for name in record.downstream.tasks]
        lines = [(name, metric, f"{value:.4g}") for name, metric, value in shown if value is not None]
        text += ["Benchmarks, zero-shot:", Table(("task", "metric", "value"), lines).markdown()]
    return "\n\n".join(text)


def _limits(record: RunRecord, concepts: bool) -> str:
    manifest = record.run.manifest
    points = [
        "It continues text. It was not trained to follow instructions, and nothing was done against false, biased or "
        "offensive continuations, which it takes from its training text.",
        f"It was trained on texts of {manifest.data.block_size:,} tokens; longer ones were not tried.",
        "The losses are of one run with one seed. They can be compared with those of models that share its tokenizer "
        "and validation text, and with no others.",
    ]
    if concepts:
        points.append(
            "It needs transformers and `trust_remote_code=True`: read the code first. llama.cpp (GGUF), vLLM and other "
            "engines with model code of their own do not run it, nor do static or quantised caches."
        )
    passes = record.recipe.model.form.passes(record.recipe.model)  # positions of a token, each time these blocks run
    if manifest.mixing is not None and sum(passes) > 1:
        points.append(
            f"The blocks above the mixing hold {sum(passes)} positions per token, so their key-value cache is as many "
            "times as large."
        )
    if record.recipe.has_concepts:
        points.append("Concepts are latents of an autoencoder. That one can be named or steered has to be tried.")
    return "\n".join(f"- {point}" for point in points)


def _licence(license: str | None, concepts: bool) -> str:
    weights = f"Weights: {license}." if license else "Weights: not stated by whoever exported them; ask before use."
    return weights + (" Code (`*_cocomix.py`): MIT, see `LICENSE.code`." if concepts else "")


def _origin_rows(record: RunRecord) -> Rows:
    manifest, versions = record.run.manifest, record.versions
    rows = [(f"version of {name}", version) for name, version in versions.items()]
    rows += [
        ("fingerprint of the data", manifest.data.fingerprint),
        ("fingerprint of the tokenizer", manifest.data.tokenizer_fingerprint),
    ]
    if manifest.labels is not None:
        rows.append(("fingerprint of the labels", manifest.labels.fingerprint))
    return rows


def _table(rows: Rows) -> str:
    cells = [(markdown_text(name), markdown_text(value)) for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)])
