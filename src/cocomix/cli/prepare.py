"""The verb `prepare`."""

from typing import Annotated

import typer

from cocomix.cli.options import AsJson, Output
from cocomix.cli.printing import print_json
from cocomix.runtime.console import ConsoleReporter

__all__ = ["prepare"]


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text files, JSONL or Parquet, folders of these, a Hub data set name, or docs: for the documentation "
            "on this machine.",
        ),
    ],
    output: Output,
    tokenizer: Annotated[str | None, typer.Option(help="Existing tokenizer: Hub name, folder or GGUF file.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Train a byte-level BPE of this size instead.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens per block.")] = 1024,
    prepend_bos: Annotated[
        bool, typer.Option("--prepend-bos", help="Begin every block with the begin-of-text token, as for Gemma.")
    ] = False,
    blocks_per_shard: Annotated[int, typer.Option(help="Blocks per file, which labelling takes one at a time.")] = 4096,
    validation: Annotated[list[str] | None, typer.Option(help="Source of the validation split; repeatable.")] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents that validates.")] = 0.01,
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    max_bytes: Annotated[int | None, typer.Option(help="Stop after this many bytes of training text.")] = None,
    hf_config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None,
    hf_split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    hf_revision: Annotated[str | None, typer.Option(help="Commit of a Hub data set.")] = None,
    tokenizer_revision: Annotated[str | None, typer.Option(help="Commit of a Hub tokenizer.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split by document.")] = 0,
    json_output: AsJson = False,
) -> None:
    """Turn text into packed token blocks.

    [dim]Example: cocomix prepare books/ --tokenizer openai-community/gpt2 --output data/books[/dim]
    """
    from cocomix.data import PrepareSettings
    from cocomix.data import prepare as run

    settings = PrepareSettings(
        sources=tuple(sources),
        validation_sources=tuple(validation or ()),
        validation_fraction=validation_fraction,
        text_column=text_column,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        block_size=block_size,
        prepend_bos=prepend_bos,
        blocks_per_shard=blocks_per_shard,
        max_bytes=max_bytes,
        hf_config=hf_config,
        hf_split=hf_split,
        hf_revision=hf_revision,
        tokenizer_revision=tokenizer_revision,
        seed=seed,
    )
    data = run(settings, output, ConsoleReporter())
    if json_output:
        print_json(data.meta.model_dump(mode="json"))
