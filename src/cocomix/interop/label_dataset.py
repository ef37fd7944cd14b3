"""Labels and their tokens as a data set of the Hub: Parquet files, a card, and the tokenizer.

OUTPUT/
  README.md                    the card; its header says which files are which split
  data/SPLIT-00000.parquet     a row per block: `input_ids` [seq], `concept_labels` [seq, k], −100 where there is none
  tokenizer/                   of the tokens
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cocomix.artifacts import explained_full_disk, whole_folder, write_json, write_text
from cocomix.concepts import determining
from cocomix.data import Tokens
from cocomix.evaluation.pages import Table
from cocomix.interop.card import public_name
from cocomix.labelling import Labels
from cocomix.runtime.console import progress

logger = logging.getLogger(__name__)

_BLOCKS_A_FILE = 8192
_BLOCKS_A_GROUP = 64


def export_labels(
    path: Path, output: Path, *, data: Path | None = None, license: str | None = None, languages: tuple[str, ...] = ()
) -> Path:
    """Write labels, with the tokens they belong to, as a folder that `datasets.load_dataset` reads.

    Args:
        output: the folder to write; must not exist.
        data: the tokens; by default the folder that the labels lie in.
        license: of the text, as the Hub names it; `None` leaves it open.
        languages: of the text, e.g. `en`.

    Returns:
        `output`.

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
                count = labels.manifest.blocks(split)
                for number, start in enumerate(range(0, count, _BLOCKS_A_FILE)):
                    name = folder / "data" / f"{split}-{number:05d}.parquet"
                    with pq.ParquetWriter(name, schema, compression="zstd") as writer:
                        for table in _tables(labels, tokens, split, range(start, min(start + _BLOCKS_A_FILE, count))):
                            writer.write_table(table.cast(schema))
                            advance(len(table))
        shutil.copytree(tokens.path / "tokenizer", folder / "tokenizer")
        write_text(folder / "README.md", _card(labels, tokens, license, languages))
        write_json(
            folder / "labels.json",
            {"fingerprint": labels.fingerprint, "labeller": determining(labels.manifest.labeller)},
        )
    logger.info(f"{total:,} blocks of {path} are in {output}, with a card")
    return output


def _tables(labels: Labels, tokens: Tokens, split: str, blocks: range) -> Iterator[pa.Table]:
    ids, stored = tokens.split(split), labels.split(split)
    for start in range(blocks.start, blocks.stop, _BLOCKS_A_GROUP):
        stop = min(start + _BLOCKS_A_GROUP, blocks.stop)
        named = np.stack([stored[block]["concept_labels"].numpy() for block in range(start, stop)]).astype(np.int32)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(named.ravel()), named.shape[2])
        rows = ids.rows(start, stop).astype(np.int32)
        yield pa.table(
            {
                "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
                "concept_labels": pa.FixedSizeListArray.from_arrays(flat, named.shape[1]),
            }
        )


def _card(labels: Labels, tokens: Tokens, license: str | None, languages: tuple[str, ...]) -> str:
    """The card: where the files are, what the columns hold, and what they were made with."""
    about, made = labels.manifest, labels.manifest.labels
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in about.splits]
    header: dict[str, Any] = {"language": list(languages), "license": license, "tags": ["cocomix", "concept labels"]}
    header = {name: value for name, value in header.items() if value}
    header["configs"] = [{"config_name": "default", "data_files": files}]
    rows = [
        ("kind", str(made["kind"])),
        ("concepts", f"{about.num_concepts:,}"),
        ("labels per position, at most", f"{about.k:,}"),
        ("labelled positions", f"{about.statistics.labelled_positions:,}"),
        ("tokens per block", f"{about.block_size:,}"),
        *((f"blocks, {split}", f"{about.blocks(split):,}") for split in about.splits),
    ]
    for name, key in (("teacher", "model"), ("dictionary", "path")):
        if isinstance(made.get(name), dict):
            rows.append((name, public_name(str(made[name][key]))))
    rows += [("text", ", ".join(sorted({public_name(source.name) for source in tokens.manifest.sources})))]
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n# Concept labels\n\n"
        "Which concepts a position should predict: labels for pretraining with "
        "[CoCoMix](https://arxiv.org/abs/2502.08524). A row is a block of tokens. `concept_labels` [seq, k] names the "
        "concepts of every position, best first, −100 where there is none; position t's are about token t + 1, and are "
        "not to be shifted.\n\n"
        f"{Table(('', ''), rows).markdown()}\n\n"
        "```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("OWNER/NAME", split="{next(iter(about.splits))}").with_format("torch")\n'
        "# columns as cocomix.CoCoMixTrainer and CoCoMixForCausalLM.forward take them\n```\n\n"
        "The tokenizer is in `tokenizer/`. The text, the teacher and the dictionary have licences of their own.\n"
    )
