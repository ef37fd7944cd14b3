"""Making the concept atlas of a run (`cocomix atlas`): one pass over its data, then a row per concept."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from cocomix.evaluation import open_run_data, open_run_labels
from cocomix.interpret.atlas_cards import AtlasManifest, AtlasSettings
from cocomix.interpret.atlas_naming import NameEndpoint
from cocomix.interpret.atlas_pass import AtlasBlocks, read_blocks
from cocomix.interpret.atlas_rows import AtlasWriter
from cocomix.interpret.atlas_store import DATABASE, TOKENIZER
from cocomix.interpret.concept_atlas import ConceptAtlas, default_atlas_folder
from cocomix.interpret.prompts import concept_model
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

__all__ = ["build_atlas"]

logger = logging.getLogger(__name__)

_STATE = "tally.safetensors"
_COMMIT_TOKENS = 2**15


def build_atlas(
    run: Run,
    output: Path | None = None,
    settings: AtlasSettings | None = None,
    *,
    device: torch.device,
    data: Path | None = None,
    labels: Path | None = None,
    endpoint: NameEndpoint | None = None,
    commit_tokens: int = _COMMIT_TOKENS,
) -> AtlasManifest:
    """Make the atlas of a run.

    A stopped run of this function goes on from its last commit, with the same result as if it had not been stopped.
    Memory holds arrays of C rows (about half a kilobyte per concept) and one batch, whatever the number of tokens.

    Args:
        run: a CoCoMix run.
        output: folder to write; by default `RUN_atlas` beside the run.
        settings: what determines the content.
        device: where the model computes.
        data: prepared data with the run's tokenizer; by default the run's own.
        labels: labels of that data; by default the run's own. Without any, the atlas has predictions only.
        endpoint: a language model that names the most frequent concepts; by default none is asked.
        commit_tokens: tokens between two commits of the pass; changes no result.

    Returns:
        Its manifest.

    Raises:
        CoCoMixError: the run has no concepts; run, data and labels do not belong together; `output` exists, or its
            partial folder was begun with something else; the disk is full.
    """
    settings = settings or AtlasSettings()
    output = output or default_atlas_folder(run.path)
    model = concept_model(run.model())
    prepared = open_run_data(run, data)
    found = open_run_labels(run, prepared, model.config.num_concepts, labels, without="label contexts and recall")
    store = None if found is None or len(found.parts) > 1 else found.first
    made_from = {
        "run": run.manifest.fingerprint,
        "tokens": prepared.manifest.fingerprint,
        "tokenizer": prepared.manifest.tokenizer_fingerprint,
        **({} if store is None else {"labels": store.manifest.fingerprint}),
    }
    identity = {"made_from": made_from, "settings": settings.model_dump(mode="json")}
    if endpoint is None and (made := ConceptAtlas.made(output, identity)) is not None:
        logger.info(f"{output} is this atlas, finished: nothing to do")
        return made.manifest
    blocks = AtlasBlocks(prepared, store, settings.tokens, document_masks=run.manifest.document_masks)
    tokenizer = prepared.tokenizer()
    model.to(device)
    with ConceptAtlas.create(output, identity=identity, resume=True) as staging:
        folder = staging.path
        tally = read_blocks(
            model,
            blocks,
            settings,
            folder / _STATE,
            device=device,
            commit_tokens=commit_tokens,
        )
        with _database(folder) as database:
            writer = AtlasWriter(database, model, tokenizer, blocks, tally, settings)
            writer.write_concepts()
            writer.write_names()
            effects = writer.write_effects()
            if endpoint is not None:
                writer.ask_for_names(endpoint)
            endpoint_names = writer.finish()
        tokenizer.save_pretrained(str(folder / TOKENIZER))
        manifest = AtlasManifest(
            made_from=made_from,
            settings=settings,
            num_concepts=model.config.num_concepts,
            run=run.manifest.name,
            blocks=len(blocks),
            tokens=len(blocks) * blocks.block_size,
            document_masks=run.manifest.document_masks,
            labelled_positions=int(tally.labelled_positions[0]),
            predicted_concepts=int((tally.predicted > 0).sum()),
            label_concepts=int((tally.labels > 0).sum()),
            effects=effects,
            endpoint_names=endpoint_names,
            histogram_edges=tuple(tally.edges.tolist()),
        )
        manifest = staging.finish(manifest, scratch=(_STATE,))
    logger.info(
        f"atlas of {manifest.run} in {output}: {manifest.predicted_concepts:,} of {manifest.num_concepts:,} concepts "
        f"predicted and {manifest.label_concepts:,} labels in {manifest.tokens:,} tokens; {effects:,} effects measured"
    )
    return manifest


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The atlas' database, open for writing.

    Raises:
        CoCoMixError: SQLite cannot write it (a full disk) or cannot read what an earlier run left.
    """
    try:
        with closing(sqlite3.connect(folder / DATABASE)) as database:
            yield database
    except sqlite3.DatabaseError as error:
        raise CoCoMixError(
            f"cannot write {folder / DATABASE} ({error}); make room, or remove {folder}, and run the command again."
        ) from error
