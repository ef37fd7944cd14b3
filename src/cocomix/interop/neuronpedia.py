"""A run's concepts as the files that Neuronpedia's importer reads, made from the run's atlas.

OUTPUT/v1/MODEL/SOURCE/
  model.jsonl, release.jsonl, sourceset.jsonl, source.jsonl     one line each: what the concepts belong to
  features/batch-N.jsonl.gz                                     a row of table `Neuron` per concept
  activations/batch-N.jsonl.gz                                  a row of `Activation` per context of the atlas
  explanations/batch-N.jsonl.gz                                 a row of `Explanation` per concept that has a name

Columns as in Neuronpedia's `apps/webapp/prisma/schema.prisma`. Its importer takes the columns of a file from the first
line, so every line of a file has the same, and a file without lines is not written. An activation is a concept's logit
where it is among the top k, and 0 elsewhere; a logit below 0 stays so.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.artifacts import MadeFromSomethingElse, explained_full_disk, whole_folder
from cocomix.evaluation import Run
from cocomix.evaluation.run_inputs import open_run_data, run_blocks
from cocomix.interpret import (
    AtlasManifest,
    ConceptAtlas,
    ConceptCard,
    Reading,
    concept_model,
    default_atlas_folder,
    read_held_out,
)
from cocomix.runtime.console import progress
from cocomix.runtime.device import default_device

_CONCEPTS_A_BATCH = 1024
_CREATOR = "clkht01d40000jv08hvalcvly"  # the user that Neuronpedia's prisma/seed.ts makes; rows must name one
_SET = "cocomix"

Row = dict[str, Any]


class _Names(NamedTuple):
    model: str
    source: str  # in Neuronpedia's form: layer, then the name of the set of sources

    def row(self, concept: int) -> Row:
        """What every row about a concept has."""
        return {"modelId": self.model, "layer": self.source, "index": str(concept)}

    def id(self, kind: str, number: int) -> Row:
        """The same whenever the export is made again, so that no row comes twice."""
        return {"id": f"c{sha256(f'{self.model}/{self.source}/{kind}/{number}'.encode()).hexdigest()[:24]}"}


def export_neuronpedia(path: Path, output: Path, *, atlas: Path | None = None, data: Path | None = None) -> Path:
    """Write a run's concepts for Neuronpedia. The atlas' blocks are read once more, for the values around its contexts.

    Args:
        atlas: of the run; by default `RUN_atlas` beside it.
        data: what the atlas was made from; by default the run's own.

    Returns:
        The folder of the source, `OUTPUT/v1/MODEL/SOURCE`.

    Raises:
        MadeFromSomethingElse: the atlas is of another run or of other data.
        CoCoMixError: run or atlas cannot be read; `output` exists.
    """
    run = Run.open(path)
    found = ConceptAtlas.open(atlas or default_atlas_folder(path), run)
    model, about = concept_model(run.model()), found.manifest
    prepared = open_run_data(run, data)
    if prepared.manifest.fingerprint != about.made_from["tokens"]:
        raise MadeFromSomethingElse(
            f"the atlas in {found.path} was made from other data than {prepared.path}; name that data with --data.",
            ("tokens",),
        )
    size = run.manifest.data.block_size
    blocks = run_blocks(run, prepared, None, limit_blocks=max(1, about.settings.tokens // size))
    reading = read_held_out(model.to(default_device()), blocks, about.settings)
    tokenizer = prepared.tokenizer()
    texts = tokenizer.batch_decode([[token] for token in range(int(reading.tokens.max()) + 1)])
    slug = re.sub(r"[^a-z0-9_-]+", "-", run.manifest.name.lower()).strip("-") or "run"
    names = _Names(slug, f"{model.config.insert_layer}-{_SET}")
    with whole_folder(output) as folder, explained_full_disk(folder):
        target = folder / "v1" / names.model / names.source
        for name, row in _about(names, run, about, model.config.num_hidden_layers).items():
            _write(target / f"{name}.jsonl", [row])
        with progress("exporting", found.num_concepts, "concepts") as advance:
            for start in range(0, found.num_concepts, _CONCEPTS_A_BATCH):
                concepts = range(start, min(start + _CONCEPTS_A_BATCH, found.num_concepts))
                cards = [found.card(concept) for concept in concepts]
                tables = {
                    "features": (_feature(card, names) for card in cards),
                    "activations": (row for card in cards for row in _activations(card, reading, texts, about, names)),
                    "explanations": (_explanation(card, names) for card in cards if card.named_from != "nothing"),
                }
                for table, rows in tables.items():
                    _write(target / table / f"batch-{start // _CONCEPTS_A_BATCH}.jsonl.gz", rows)
                advance(len(cards))
    return output / "v1" / names.model / names.source


def _about(names: _Names, run: Run, about: AtlasManifest, layers: int) -> dict[str, Row]:
    """Model, release, set of sources and source. Inference is off: Neuronpedia's server cannot run such a model."""
    made = {"creatorId": _CREATOR, "visibility": "PUBLIC"}
    model = {"id": names.model, "displayName": run.manifest.name, "displayNameShort": run.manifest.name, "owner": ""}
    release = {"name": f"{_SET}-{names.model}", "urls": [], "creatorName": _SET}
    release["description"] = f"Concepts of the CoCoMix run {run.manifest.name}"
    described = f"{about.num_concepts} predicted concepts"
    source = {"id": names.source, "modelId": names.model, "setName": _SET, "hasDashboards": True}
    read = {"num_prompts": about.blocks, "num_tokens_in_prompt": about.tokens // about.blocks}
    return {
        "model": {**model, **made, "layers": layers, "neuronsPerLayer": 0, "inferenceEnabled": False},
        "release": {**release, **made},
        "sourceset": {
            **{"modelId": names.model, "name": _SET, "description": described, "creatorName": _SET},
            **{"releaseName": release["name"], "allowInferenceSearch": False, **made},
        },
        "source": {**source, **made, **read, "inferenceEnabled": False},
    }


def _feature(card: ConceptCard, names: _Names) -> Row:
    edges = np.asarray(card.histogram.edges)
    return {
        **names.row(card.id),
        "creatorId": _CREATOR,
        "maxActApprox": card.max_logit or 0.0,
        "frac_nonzero": card.density,
        "freq_hist_data_bar_heights": list(card.histogram.counts),
        "freq_hist_data_bar_values": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "pos_str": [token for token, _ in card.raised or ()],
        "pos_values": [nats for _, nats in card.raised or ()],
        "neg_str": [token for token, _ in card.lowered or ()],
        "neg_values": [nats for _, nats in card.lowered or ()],
        "topkCosSimIndices": [concept for concept, _ in card.nearest],
        "topkCosSimValues": [cosine for _, cosine in card.nearest],
    }


def _activations(
    card: ConceptCard, reading: Reading, texts: list[str], about: AtlasManifest, names: _Names
) -> Iterator[Row]:
    length, window = reading.tokens.shape[1], about.settings.window
    for context in card.predicted_contexts:
        start, end = max(0, context.position - window), min(length, context.position + 1 + window)
        places = slice(context.block * length + start, context.block * length + end)
        chosen = reading.ids[places] == card.id  # [tokens, k]
        values = np.where(chosen, reading.logits[places], 0.0).sum(-1)
        strongest = int(np.where(chosen.any(-1), values, -np.inf).argmax())
        yield {
            **names.id("activation", card.id * reading.tokens.size + context.block * length + context.position),
            **names.row(card.id),
            "creatorId": _CREATOR,
            "tokens": [texts[token] for token in reading.tokens[context.block, start:end]],
            "values": values.tolist(),
            "maxValue": float(values[strongest]),
            "maxValueTokenIndex": strongest,
            "minValue": float(values.min()),
            "qualifyingTokenIndex": context.position - start,
            "dataIndex": f"{context.split}/{context.block}",
        }


def _explanation(card: ConceptCard, names: _Names) -> Row:
    row = {"description": card.name, "authorId": _CREATOR, "notes": f"cocomix atlas, named from {card.named_from}"}
    return {**names.id("explanation", card.id), **names.row(card.id), **row}


def _write(path: Path, rows: Iterable[Row]) -> None:
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = text.encode()
        # No time in the archive: the same rows are the same bytes.
        path.write_bytes(gzip.compress(plain, mtime=0) if path.suffix == ".gz" else plain)
