"""The verb `prepare`."""

import os
import shlex
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cocomix.cli.options import Output, part_of
from cocomix.cli.printing import Printed


@dataclass(frozen=True)
class _Settings:
    """Every field is an option, and one of `PrepareSettings`."""

    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text files, JSONL or Parquet, folders of these, a Hub data set name, or docs: for the documentation "
            "on this machine.",
        ),
    ]
    tokenizer: Annotated[str | None, typer.Option(help="Existing tokenizer: Hub name, folder or GGUF file.")] = None
    vocab_size: Annotated[int | None, typer.Option(help="Train a byte-level BPE of this size instead.")] = None
    block_size: Annotated[int, typer.Option(help="Tokens per block.")] = 1024
    prepend_bos: Annotated[
        bool, typer.Option("--prepend-bos", help="Begin every block with the begin-of-text token, as for Gemma.")
    ] = False
    tokens_per_file: Annotated[int, typer.Option(min=1, help="Tokens per file.")] = 2**28
    validation_sources: Annotated[
        list[str] | None, typer.Option("--validation", help="Source of the validation split; repeatable.")
    ] = None
    validation_fraction: Annotated[float, typer.Option(help="Share of documents that validates.")] = 0.01
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text"
    token_dtype: Annotated[
        str | None,
        typer.Option(help="Type of the tokens in token files, e.g. uint32; default: told from their content."),
    ] = None
    max_bytes: Annotated[int | None, typer.Option(help="Stop after this many bytes of training text.")] = None
    hf_config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None
    hf_split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train"
    hf_revision: Annotated[str | None, typer.Option(help="Commit of a Hub data set.")] = None
    tokenizer_revision: Annotated[str | None, typer.Option(help="Commit of a Hub tokenizer.")] = None
    seed: Annotated[int, typer.Option(help="Seed of the split by document.")] = 0


def prepare(
    *,
    output: Output,
    options: _Settings,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read and encode; default: one a core.")
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Only encode share I of N, from 0, as one of N jobs; then run without, to finish."
        ),
    ] = None,
) -> Printed | None:
    """Turn text into packed token blocks.

    A command that was stopped goes on where it was when it is given again.

    [dim]Example: cocomix prepare books/ --tokenizer openai-community/gpt2 --output data/books[/dim]
    """
    from cocomix.data import PrepareSettings, encode_share
    from cocomix.data import prepare as run
    from cocomix.experiments import next_step

    settings = PrepareSettings.model_validate(
        asdict(options) | {"validation_sources": options.validation_sources or ()}
    )
    if share is not None:
        encode_share(settings, output, *part_of("--share", share))
        return None
    data = run(settings, output, workers=workers or len(os.sched_getaffinity(0)))
    following = f"cocomix init --corpus {shlex.quote(str(output))}"
    return Printed(data.manifest.model_dump(mode="json"), next=next_step(output) or following)
