"""From text to packed token blocks: the work behind `cocomix prepare`.

    sources ─ plan_units ─▶ units ─ encode_unit, in parallel ─▶ logs ─ divide ─▶ splits ─ pack_file ─▶ files

In the staging folder lie, until the end, `work/units` (the logs), `work/tokenizer-…` and `work/files-…`, each named by
what determines its content. So a command that was stopped goes on, also with other settings, as far as they leave
something as it is.
"""

import math
import shutil
import time
import uuid
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cocomix.artifacts import PLAN, file_entry, fingerprint_json
from cocomix.data.documents import resolve_sources
from cocomix.data.packing import BlockShape, file_plans, pack_file
from cocomix.data.prepare_settings import PrepareSettings, check_settings
from cocomix.data.splits import ALL, TRAIN, VALIDATION, Division, Member, divide, draw_of, threshold_of
from cocomix.data.token_files import token_files
from cocomix.data.tokenizer import (
    set_begin_of_text,
    tokenizer_fingerprint,
    tokenizer_identity,
    train_tokenizer,
    vocabulary_size,
)
from cocomix.data.tokens import HELDOUT_HASHES, SourceMeta, SplitMeta, Tokens, TokensFile, TokensManifest
from cocomix.data.units import ALGORITHM, Encoding, Unit, encode_unit, plan_units, unit_parts
from cocomix.data.workers import Workers
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.stopping import Terminated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = getLogger(__name__)

_WORK = "work"
_MUCH_VALIDATION = 3.0  # how many times the share that was asked for is worth a warning
_FEW_DOCUMENTS = 5
"""Fewer that validate are worth a warning: one book's loss is not the corpus's, and intervals are over documents."""


def prepare(settings: PrepareSettings, output: Path | str, *, workers: int = 1) -> Tokens:
    """Turn text into packed token blocks in the folder `output`.

    Every document is encoded without special tokens and followed by the end-of-document token; documents are packed
    one after another, so that blocks begin and end anywhere. With `prepend_bos` each block has the begin-of-text token
    first and then the next `block_size` − 1 tokens of the documents. The tokenizer is saved so that it begins texts in
    the same way. The same sources and settings give the same bytes, however many workers there are and however often
    the work was stopped. Memory does not grow with the corpus. Where `output` is of these settings already, nothing is
    done.

    Args:
        output: folder or URL to write.
        workers: processes that read and encode. They are spawned, so that a script that asks for more than one must
            guard its own calls by `if __name__ == "__main__":`.

    Raises `BeingWritten` where another process is at it; `CoCoMixError` where the settings contradict each other, a
    source or the tokenizer cannot be used, a split would hold less than one block, or `output` is something else.
    """
    preparation = _Preparation(settings)
    if (made := Tokens.made(output, preparation.identity)) is not None:
        logger.info("%s holds the tokens of these sources and settings already; nothing to do", output)
        return made
    started = time.perf_counter()
    with Tokens.create(output, identity=preparation.identity, resume=True, any_identity=True) as staging:
        try:
            with Workers(workers) as pool:
                encoding = preparation.encoding(staging.path)
                members = preparation.encode(encoding, pool)
                manifest = preparation.pack(staging.path, encoding, members, pool)
        except CoCoMixError:
            if len(preparation.units) <= 1:  # what takes seconds to make again
                shutil.rmtree(staging.path)
            raise
        except (KeyboardInterrupt, Terminated):
            logger.warning("%s MB of the input are encoded and kept", f"{preparation.read:,.1f}")
            raise
        staging.finish(manifest, scratch=[_WORK])
    tokens = Tokens.open(output)
    _report(tokens.manifest, time.perf_counter() - started)
    return tokens


def encode_share(settings: PrepareSettings, output: Path | str, share: int, shares: int) -> None:
    """Encode one of several shares of the units, as one of many jobs; `prepare` then finishes the output.

    The settings are the same in all jobs, with an existing tokenizer and without `max_bytes`: what needs the input in
    order is refused. The output is on a disk that all jobs share. Shares are numbered from 0. Errors as of `prepare`.
    """
    if settings.tokenizer is None or settings.max_bytes is not None:
        raise CoCoMixError("jobs that share the work take --tokenizer, not --vocab-size, and no --max-bytes.")
    preparation = _Preparation(settings)
    if Tokens.made(output, preparation.identity) is not None:
        return
    with Tokens.create(output, identity=preparation.identity, shared=True, any_identity=True) as staging:
        preparation.encode(preparation.encoding(staging.path), Workers(1), slice(share, None, shares))


class _Preparation:
    """One call of `prepare`: settings, sources, and what the result is known by."""

    def __init__(self, settings: PrepareSettings) -> None:
        check_settings(settings)
        self.settings = settings
        resolved = resolve_sources((*settings.sources, *settings.validation_sources), settings.hub)
        train, heldout = resolved[: len(settings.sources)], resolved[len(settings.sources) :]
        if not heldout:  # a folder of token files may bring both splits
            heldout = [replace(source, files=source.heldout, heldout=()) for source in train if source.heldout]
        self.sources = (*train, *(replace(source, validates=True) for source in heldout))
        if len({source.kind == "tokens" for source in self.sources}) > 1:
            raise CoCoMixError("token files and texts must be prepared apart; a recipe can mix the results.")
        if train[0].kind == "tokens" and settings.tokenizer is None:
            raise CoCoMixError("token files need --tokenizer, the one they were made with, and not --vocab-size.")
        self.drawn = not heldout
        self.threshold = threshold_of(settings.validation_fraction) if self.drawn else 0
        named = {"sources", "validation_sources", "tokenizer", "tokenizer_revision"}
        self.identity = {
            **settings.model_dump(mode="json", exclude=named),
            "sources": [source.identity() for source in train],
            "validation_sources": [source.identity() for source in heldout],
            "tokenizer": tokenizer_identity(settings.tokenizer, settings.tokenizer_revision),
            "algorithm": ALGORITHM,
        }
        self.units: list[Unit] = []
        self.bos: int | None = None
        self.read = 0.0  # megabytes of input that are encoded and kept

    def encoding(self, folder: Path) -> Encoding:
        """Get the tokenizer, and cut the input into units."""
        from cocomix.runtime.hub import load_tokenizer  # takes seconds

        settings, work = self.settings, folder / _WORK
        (work / "units").mkdir(parents=True, exist_ok=True)
        for source in self.sources:
            if source.ignored:
                logger.info("%s: left out %s files of other kinds", source.name, f"{source.ignored:,}")
        shape = ("block_size", "tokens_per_file")
        made_of = {name: value for name, value in self.identity.items() if name not in shape}
        place = work / f"tokenizer-{fingerprint_json(made_of)[:16]}"
        if not place.exists():
            if settings.tokenizer is None:
                made, name = self._trained_tokenizer(), "trained here"
            else:
                made, name = load_tokenizer(settings.tokenizer, settings.tokenizer_revision), settings.tokenizer
            set_begin_of_text(made, settings.prepend_bos, name)
            aside = work / f".tokenizer-{uuid.uuid4().hex}.tmp"
            made.save_pretrained(aside)
            try:
                aside.rename(place)
            except OSError:
                if not place.exists():  # otherwise another job that shares the work was faster
                    raise
        tokenizer = load_tokenizer(str(place))
        eos = int(tokenizer.eos_token_id)
        self.bos = int(tokenizer.bos_token_id) if settings.prepend_bos else None
        of_tokens = token_files(place, eos, settings.token_dtype)
        self.units = plan_units(self.sources, settings.text_column, of_tokens)
        fingerprint, size = tokenizer_fingerprint(tokenizer), vocabulary_size(tokenizer)
        return Encoding(settings, self.threshold, work / "units", place, fingerprint, eos, size)

    def _trained_tokenizer(self) -> "PreTrainedTokenizerFast":
        wanted, limit = self.settings.vocab_size, self.settings.tokenizer_training_bytes
        assert wanted is not None
        documents: list[tuple[int, list[str]]] = []  # draw and pieces of each
        pieces, held, size = list[str](), 0, 0
        every = plan_units(self.sources, self.settings.text_column, None)
        units = (unit for unit in every if not unit.validates)
        for part in (part for unit in units for part in unit_parts(unit, self.settings, self.threshold)):
            pieces.append(str(part.content))
            held += part.bytes
            if part.last or size + held >= limit:
                draw = draw_of(part.hash, self.settings.seed) if part.last else ALL
                documents.append((draw, pieces))
                size += held if draw >= self.threshold else 0
                pieces, held = [], 0
            if size >= limit:
                break
        cutoff = self.threshold
        if self.drawn and len(documents) > 1 and all(draw >= cutoff for draw, _ in documents):
            cutoff = min(draw for draw, _ in documents) + 1  # that one will be moved to a split that would be empty
        logger.info("training a tokenizer of %s entries on %s MB", f"{wanted:,}", f"{size / 1e6:,.1f}")
        tokenizer = train_tokenizer((text for draw, texts in documents if draw >= cutoff for text in texts), wanted)
        if (reached := vocabulary_size(tokenizer)) < wanted:
            logger.warning("the training text is enough for a vocabulary of %s, not %s", f"{reached:,}", f"{wanted:,}")
        return tokenizer

    def encode(self, encoding: Encoding, pool: Workers, share: slice = slice(None)) -> list[Member]:
        """Encode the units of a share; with `max_bytes`, training units until there is enough."""
        units, limit, seed = self.units[share], self.settings.max_bytes, self.settings.seed
        total = sum(unit.size for unit in units) / 1e6 if all(unit.size for unit in units) else None
        members = []
        with progress("reading and encoding", total, "MB") as advance:

            def count(amount: float) -> None:
                self.read += amount / 1e6
                advance(amount / 1e6)

            for validates in (False, True):
                left = math.inf if limit is None or validates else limit
                of_split = [unit for unit in units if unit.validates == validates]
                with closing(pool.run(partial(encode_unit, encoding), of_split, count)) as results:
                    for unit, _ in zip(of_split, results, strict=False):
                        threshold = ALL if validates else self.threshold
                        members.append(Member(encoding.log(unit), unit.source, threshold, seed))
                        if left < math.inf:
                            documents = members[-1].documents()
                            left -= int(documents.bytes[~documents.validates].sum())
                            if left <= 0:
                                break
        return members

    def pack(self, folder: Path, encoding: Encoding, members: list[Member], pool: Workers) -> TokensManifest:
        """Divide the documents and write the blocks of both splits."""
        settings = self.settings
        shape = BlockShape(settings.block_size, self.bos, settings.tokens_per_file)
        division = divide(members, drawn=self.drawn, max_bytes=settings.max_bytes, needed=shape.taken)
        self._check_division(division, shape)
        plans = {
            split: file_plans(split, division.members, division.tokens[split], shape) for split in (TRAIN, VALIDATION)
        }
        made_of = [[member.log.name, member.threshold, member.first, member.seed] for member in division.members]
        place = folder / _WORK / f"files-{fingerprint_json([made_of, asdict(shape)])[:16]}"
        place.mkdir(exist_ok=True)
        every = [plan for of_split in plans.values() for plan in of_split]
        tokens = sum(plan.blocks for plan in every) * shape.block_size
        with progress("packing", tokens, "tokens") as advance:
            entries = list(pool.run(partial(pack_file, place, shape), every, advance))
        np.save(place / HELDOUT_HASHES, division.heldout, allow_pickle=False)
        entries.append(file_entry(place / HELDOUT_HASHES))
        names = [*(plan.name for plan in every), HELDOUT_HASHES]
        for left in folder.iterdir():  # of a command that was killed about here
            if left.name not in (_WORK, PLAN):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        for name in names:
            try:  # so that a command that is killed from here on finds them again
                (folder / name).hardlink_to(place / name)
            except OSError:  # a file system without links
                (place / name).rename(folder / name)
        shutil.copytree(encoding.tokenizer, folder / "tokenizer")
        return TokensManifest(
            made_from={"tokenizer": encoding.tokenizer_fingerprint},
            files=dict(zip(names, entries, strict=True)),
            tokenizer_fingerprint=encoding.tokenizer_fingerprint,
            tokenizer_name=settings.tokenizer or f"byte-level BPE of {encoding.vocab_size:,} trained here",
            vocab_size=encoding.vocab_size,
            eos_token_id=encoding.eos_token_id,
            bos_token_id=self.bos,
            block_size=settings.block_size,
            seed=settings.seed,
            sources=tuple(
                SourceMeta(
                    name=source.name,
                    kind=source.kind,
                    splits=(TRAIN, VALIDATION) if self.drawn else (VALIDATION if source.validates else TRAIN,),
                    documents=division.source_documents[number],
                    bytes=division.source_bytes[number],
                )
                for number, source in enumerate(self.sources)
            ),
            splits={
                split: SplitMeta(
                    documents=division.documents[split],
                    tokens=sum(division.tokens[split]),
                    bytes=division.bytes[split],
                    blocks=sum(plan.blocks for plan in of_split),
                    files=tuple(TokensFile(name=plan.name, blocks=plan.blocks) for plan in of_split),
                )
                for split, of_split in plans.items()
            },
            invalid_utf8=division.invalid,
        )

    def _check_division(self, division: Division, shape: BlockShape) -> None:
        """Refuse what gives no blocks; warn of what a person may not expect."""
        for number, source in enumerate(self.sources):
            if not division.source_documents[number] and number in {member.source for member in division.members}:
                raise CoCoMixError(f"{source.name} holds no documents: there is no text in it; give another source.")
        if self.drawn and division.single:
            raise CoCoMixError(
                "the sources hold a single document, or copies of one, and copies are not divided between the splits; "
                "give the validation text with --validation, or more documents."
            )
        tokens = {split: sum(of_units) for split, of_units in division.tokens.items()}
        for split, remedy in ((TRAIN, "more text"), (VALIDATION, "more text, --validation")):
            if tokens[split] < shape.taken:
                raise CoCoMixError(
                    f"the {split} split has {division.documents[split]:,} documents with {tokens[split]:,} tokens, "
                    f"less than one block of {shape.block_size:,}; give {remedy} or a smaller --block-size."
                )
        share, asked = tokens[VALIDATION] / sum(tokens.values()), self.settings.validation_fraction
        if self.drawn and share > _MUCH_VALIDATION * asked:
            logger.warning(
                f"{share:.1%} of the tokens validate ({tokens[VALIDATION]:,} of {sum(tokens.values()):,}), and "
                f"{100 * asked:.3g}% were asked for: a split has whole documents, and at least one block of them; give "
                "more text, smaller documents or --validation"
            )
        elif self.drawn and division.documents[VALIDATION] < _FEW_DOCUMENTS:
            logger.warning(
                f"only {division.documents[VALIDATION]} of {sum(division.documents.values()):,} documents validate "
                f"({tokens[VALIDATION]:,} tokens), so that losses will say little of other texts; give "
                "--validation-fraction 0.1, say, or --validation"
            )
        if division.both:
            logger.warning(f"{division.both:,} training documents are among those that validate, too")
        if division.invalid:
            logger.warning(f"{division.invalid:,} characters that were not UTF-8 were replaced by U+FFFD")


def _report(manifest: TokensManifest, seconds: float) -> None:
    for name, split in manifest.splits.items():
        size = f"{split.bytes / 1e6:,.1f} MB" if split.bytes >= 1e6 else f"{split.bytes / 1e3:,.0f} kB"
        logger.info(
            f"{name}: {split.documents:,} documents, {size}, {split.tokens:,} tokens, {split.blocks:,} blocks of "
            f"{manifest.block_size:,}"
        )
    tokens = sum(split.tokens for split in manifest.splits.values())
    logger.info(f"prepared {tokens:,} tokens in {seconds:,.1f} s ({tokens / seconds:,.0f} tokens/s)")
