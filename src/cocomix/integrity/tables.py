"""Checks of what is stored in a database: the concept atlas."""

import sqlite3
from contextlib import closing
from pathlib import Path

from cocomix.artifacts.hashing import file_sha256
from cocomix.data import tokenizer_fingerprint
from cocomix.evaluation import Run
from cocomix.integrity.findings import Findings
from cocomix.interpret import ConceptAtlas
from cocomix.interpret.atlas_store import DATABASE, TOKENIZER, run_fingerprint
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer

__all__ = ["check_atlas"]

_AGAIN = "make it again with `cocomix atlas`"


def check_atlas(path: Path, checklist: Findings) -> None:
    """An atlas: its database, its tokenizer, and its run where that lies beside it."""
    with ConceptAtlas.open(path) as atlas:
        record = atlas.record
    if record.database_sha256 is None:
        checklist.skip("hash", f"made before the hash of {DATABASE} was recorded")
    else:
        sha256 = file_sha256(path / DATABASE)
        checklist.equal(DATABASE, sha256, record.database_sha256, "its hash", f"remove {path} and {_AGAIN}")
    with (
        checklist.check("tables", "SQLite's own check, and a row per concept", f"remove {path} and {_AGAIN}"),
        closing(sqlite3.connect(f"{(path / DATABASE).resolve().as_uri()}?mode=ro", uri=True)) as database,
    ):
        (state,) = database.execute("PRAGMA integrity_check").fetchone()
        counts = [database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("concepts", "texts")]
        if state != "ok" or counts != [record.num_concepts] * 2:
            raise CoCoMixError(f"{path / DATABASE} is damaged ({state}, {counts} rows); remove {path} and {_AGAIN}.")
    with checklist.check("tokenizer", "its fingerprint", _AGAIN):
        if tokenizer_fingerprint(load_tokenizer(str(path / TOKENIZER))) != record.tokenizer_fingerprint:
            raise CoCoMixError(f"{path / TOKENIZER} is not the tokenizer the atlas was made with; {_AGAIN}.")
    run = path.resolve().with_name(path.resolve().name.removesuffix("_atlas"))
    if run == path.resolve() or not (run / "manifest.json").is_file():
        checklist.skip("run", f"{record.run} is not beside its atlas")
        return
    with checklist.check("run", f"fingerprint of {run}", _AGAIN):
        if run_fingerprint(Run.open(run)) != record.run_fingerprint:
            raise CoCoMixError(f"{path} is an atlas of another run than {run}; {_AGAIN}.")
