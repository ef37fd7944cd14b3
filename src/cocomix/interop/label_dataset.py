"""Labels and their tokens as a data set of the Hub: Parquet files, a card, and the tokenizer.

OUTPUT/
  README.md                    the card; its header says which files are which split
  data/SPLIT-00000.parquet     a row per block: `input_ids` [seq], `concept_labels` [seq, k], −100 where there is none
  tokenizer/                   of the tokens
"""

import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.artifacts import explained_full_disk, whole_folder, write_json, write_text
from cocomix.concepts import determining
from cocomix.data import Tokens
from cocomix.interop.card import render_card
from cocomix.labelling import Labels
from cocomix.runtime.console import progress

logger = logging.getLogger(__name__)

_BLOCKS_A_FILE = 8192
_BLOCKS_A_GROUP = 64


def export_labels(
    path: Path, output: Path, *, data: Path | None = None, license: str | None = None, languages: tuple[str, ...] = ()
) -> Path:
    """Write labels, with the tokens they belong to, as a folder that `datasets.load_dataset` reads.

    The tokens are `data`, by default the folder that the labels lie in; `license` and `languages` are the text's, as in
    `export_run`.

    Raises:
        CoCoMixError: labels or tokens cannot be read or do not belong together; `output` exists.
    """
    labels, tokens = Labels.open(path), Tokens.open(data or path.resolve().parent)
    labels.require_tokens(tokens)
    shape = (tokens.manifest.block_size, labels.manifest.k)
    kept = pa.list_(pa.list_(pa.int32(), shape[1]), shape[0])
    schema = pa.schema({"input_ids": pa.list_(pa.int32(), shape[0]), "concept_labels": kept})
    with whole_folder(output) as folder, explained_full_disk(folder):
        (folder / "data").mkdir()
        total = sum(labels.manifest.blocks(split) for split in labels.manifest.splits)
        with progress("exporting", total, "blocks") as advance:
            for split in labels.manifest.splits:
                count, ids, stored = labels.manifest.blocks(split), tokens.split(split), labels.split(split)
                for number, start in enumerate(range(0, count, _BLOCKS_A_FILE)):
                    name = folder / "data" / f"{split}-{number:05d}.parquet"
                    end = min(start + _BLOCKS_A_FILE, count)
                    with pq.ParquetWriter(name, schema, compression="zstd") as writer:
                        for first in range(start, end, _BLOCKS_A_GROUP):
                            stop = min(first + _BLOCKS_A_GROUP, end)
                            named = [stored[block]["concept_labels"].tolist() for block in range(first, stop)]
                            columns = {"input_ids": ids.rows(first, stop).tolist(), "concept_labels": named}
                            writer.write_table(pa.table(columns, schema=schema))
                            advance(stop - first)
        shutil.copytree(tokens.path / "tokenizer", folder / "tokenizer")
        about = labels.manifest
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in about.splits]
        header = {
            **{"language": list(languages), "license": license, "tags": ["cocomix", "concept labels"]},
            "configs": [{"config_name": "default", "data_files": files}],
        }
        sources = tokens.manifest.sources
        card = render_card("label_card.md", header, about=about, made=about.labels, sources=sources)
        write_text(folder / "README.md", card)
        made_by = {"fingerprint": labels.fingerprint, "labeller": determining(about.labeller)}
        write_json(folder / "labels.json", made_by)
    logger.info(f"{total:,} blocks of {path} are in {output}, with a card")
    return output
