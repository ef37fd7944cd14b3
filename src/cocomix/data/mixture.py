"""Several prepared corpora used as one, in given shares."""

from collections.abc import Sequence

from cocomix.artifacts import fingerprint_json
from cocomix.data.token_blocks import TokenBlocks
from cocomix.data.tokens import SplitMeta, Tokens
from cocomix.runtime.errors import CoCoMixError


class MixedData(Tokens):
    """Corpora whose blocks are numbered through, corpus after corpus, in every split.

    Shares say how often training draws from a corpus (`cocomix.training.order.MixtureOrder`). Evaluations read all
    validation blocks, or where fewer are asked for, the first of each corpus in these shares.

    Attributes:
        parts: the corpora.
        shares: of each, adding up to 1.
    """

    def __init__(self, parts: Sequence[Tokens], weights: Sequence[float]) -> None:
        """Join corpora.

        Args:
            parts: at least one; of the same tokenizer and block size, with the same token before blocks or none.
            weights: share of each, in any unit.

        Raises:
            CoCoMixError: a corpus has another tokenizer, block size, first token of blocks or splits than the first.
        """
        self.parts = tuple(parts)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        first = parts[0]
        for part in parts[1:]:
            for what, found, expected in (
                ("tokenizer", part.manifest.tokenizer_fingerprint[:16], first.manifest.tokenizer_fingerprint[:16]),
                ("block size", part.manifest.block_size, first.manifest.block_size),
                ("begin-of-text token", part.manifest.bos_token_id, first.manifest.bos_token_id),
                ("splits", ", ".join(sorted(part.manifest.splits)), ", ".join(sorted(first.manifest.splits))),
            ):
                if found != expected:
                    raise CoCoMixError(
                        f"{part.path} and {first.path} cannot be mixed: they differ in their {what} ({found} and "
                        f"{expected}); prepare both with the same --tokenizer, --block-size and --prepend-bos."
                    )
        identity = [
            [part.manifest.fingerprint, round(share, 9)] for part, share in zip(self.parts, self.shares, strict=True)
        ]
        changes = {
            "fingerprint": fingerprint_json({"mixture": identity}),
            "sources": tuple(source for part in parts for source in part.manifest.sources),
            "splits": {name: _joined([part.manifest.splits[name] for part in parts]) for name in first.manifest.splits},
            "invalid_utf8": sum(part.manifest.invalid_utf8 for part in parts),
        }
        super().__init__(first.path, first.manifest.model_copy(update=changes))

    def sizes(self, split: str) -> tuple[int, ...]:
        """Blocks of each corpus in a split."""
        return tuple(part.manifest.splits[split].blocks for part in self.parts)

    def first_blocks(self, split: str, count: int) -> list[int]:
        """Numbers of about `count` blocks: the first of each corpus, in the corpora's shares, at least one of each."""
        chosen: list[int] = []
        start = 0
        for size, share in zip(self.sizes(split), self.shares, strict=True):
            chosen += range(start, start + min(size, max(1, round(count * share))))
            start += size
        return chosen

    def split(self, name: str, *, scattered: bool = False) -> TokenBlocks:
        """The blocks of all corpora, one corpus after the other; see `Tokens.split`.

        Raises:
            CoCoMixError: there is no such split.
        """
        counts = self._counts(name)
        files = [(part, file) for part in self.parts for file in part.manifest.splits[name].files]
        return TokenBlocks(files, counts, self.manifest.block_size, scattered=scattered)


def _joined(splits: Sequence[SplitMeta]) -> SplitMeta:
    return SplitMeta(
        documents=sum(split.documents for split in splits),
        tokens=sum(split.tokens for split in splits),
        bytes=sum(split.bytes for split in splits),
        blocks=sum(split.blocks for split in splits),
        files=tuple(file for split in splits for file in split.files),
    )
