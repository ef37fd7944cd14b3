"""datatrove's own executor around the units, and its token files."""

from pathlib import Path

import pytest

from cocomix.data import PrepareSettings, prepare
from cocomix.data.tokenizer import train_tokenizer
from tests.data.conftest import story, write_jsonl

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.tokens import DocumentTokenizer

from cocomix.data.datatrove_tasks import EncodeUnits

STORIES = [story(number) for number in range(60)]


@pytest.fixture
def settings(tmp_path: Path) -> PrepareSettings:
    train_tokenizer(STORIES, 300).save_pretrained(tmp_path / "tokenizer")
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl.gz", STORIES[number::3])
    sources = tuple(str(tmp_path / f"{number}.jsonl.gz") for number in range(3))
    tokenizer = str(tmp_path / "tokenizer")
    return PrepareSettings(sources=sources, tokenizer=tokenizer, block_size=8, validation_fraction=0.2)


def test_tasks_give_what_prepare_gives(tmp_path: Path, settings: PrepareSettings) -> None:
    whole = prepare(settings, tmp_path / "whole")
    logs = str(tmp_path / "logs")
    LocalPipelineExecutor([EncodeUnits(settings, tmp_path / "out")], tasks=4, workers=1, logging_dir=logs).run()
    units = tmp_path / "out.partial" / "work" / "units"
    before = {path.name: path.stat().st_mtime_ns for path in units.glob("*.rows")}
    assert before
    done = prepare(settings, tmp_path / "out")
    assert done.manifest.fingerprint == whole.manifest.fingerprint


def test_token_files_that_datatrove_wrote(tmp_path: Path, settings: PrepareSettings) -> None:
    tokenizer = str(tmp_path / "tokenizer" / "tokenizer.json")
    step = DocumentTokenizer(
        str(tmp_path / "ds"), tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", shuffle_documents=False
    )
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(STORIES)]
    LocalPipelineExecutor([documents, step], logging_dir=str(tmp_path / "logs")).run()
    texts = write_jsonl(tmp_path / "all.jsonl", STORIES)
    one = prepare(settings.model_copy(update={"sources": (str(texts),)}), tmp_path / "texts")
    two = prepare(settings.model_copy(update={"sources": (str(tmp_path / "ds"),)}), tmp_path / "tokens")
    assert one.manifest.fingerprint == two.manifest.fingerprint
