"""The settings of `cocomix prepare`."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from cocomix.data.tokenizer import check_vocab_size
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section


class PrepareSettings(Section):
    """What to prepare and how."""

    sources: tuple[str, ...]
    """Files (.txt, .md, .jsonl, .json, each also .gz or .zst; .parquet), folders, URLs, Hub data set names or `docs:`;
    or token files (see `cocomix.data.token_files`) and nothing else."""
    validation_sources: tuple[str, ...] = ()
    """Sources of the validation split; when given, all of `sources` trains and `validation_fraction` is not used."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Expected share of the documents that validates, drawn by seed and content; at least enough for one block."""
    text_column: str = "text"
    """Field of JSON Lines or column of Parquet and Hub data sets that holds the text."""
    tokenizer: str | None = None
    """An existing tokenizer: a folder (also of prepared data), GGUF file or Hub name; either this or `vocab_size`."""
    vocab_size: int | None = None
    """Train a byte-level BPE with this many entries on the training documents; either this or `tokenizer`."""
    tokenizer_training_bytes: int = Field(default=100_000_000, gt=0)
    """UTF-8 bytes of training text, from the beginning, that the BPE is trained on at most; they are held in memory."""
    token_dtype: str | None = Field(default=None, pattern=r"^(u?int(16|32|64))$")
    """Type of the tokens in token files; by default told from their content."""
    block_size: int = Field(default=1024, ge=2)
    """Tokens per block."""
    prepend_bos: bool = False
    """Begin every block with the tokenizer's begin-of-text token, which takes one of its places, as SAELens' option of
    this name does; for teachers and dictionaries that were made for such contexts, Gemma's among them."""
    tokens_per_file: int = Field(default=2**28, ge=1)
    """Tokens per file, rounded down to whole blocks."""
    seed: int = 0
    """Seed of the split by document."""
    max_bytes: int | None = Field(default=None, gt=0)
    """Stop with the document that reaches this many UTF-8 bytes of training text; a document is cut there itself."""
    hf_config: str | None = None
    """Configuration of data sets on the Hugging Face Hub."""
    hf_split: str = "train"
    """Split of data sets on the Hugging Face Hub that is read."""
    hf_revision: str | None = None
    """Commit, tag or branch of data sets on the Hugging Face Hub."""
    tokenizer_revision: str | None = None
    """Commit, tag or branch of a tokenizer on the Hugging Face Hub."""

    @field_validator("tokenizer")
    @classmethod
    def _of_prepared_data(cls, name: str | None) -> str | None:
        if name is not None and (inner := Path(name).expanduser() / "tokenizer").is_dir():
            return str(inner)
        return name

    @property
    def hub(self) -> dict[str, Any]:
        """What `datasets.load_dataset` is told."""
        return {"name": self.hf_config, "split": self.hf_split, "revision": self.hf_revision}


def check_settings(settings: PrepareSettings) -> None:
    """Refuse settings that contradict each other, or lack something."""
    if not settings.sources:
        raise CoCoMixError("there is no source to read; give a file, a folder, a Hugging Face data set name or docs:.")
    if (settings.tokenizer is None) == (settings.vocab_size is None):
        given = "neither of them" if settings.tokenizer is None else "both"
        raise CoCoMixError(
            f"give either --tokenizer, to use an existing one, or --vocab-size, to train one; {given} was given."
        )
    if settings.vocab_size is not None:
        check_vocab_size(settings.vocab_size)
    if not settings.validation_sources and settings.validation_fraction == 0:
        raise CoCoMixError(
            "there would be no validation split: --validation-fraction is 0 and no --validation is given; give one."
        )
