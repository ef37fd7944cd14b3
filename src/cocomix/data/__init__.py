"""Data: documents out of many sources, tokenizers, and packed token blocks. Knows nothing of concepts or models.

Names are imported when they are first used: some need PyTorch or transformers, which take seconds.
"""

from typing import TYPE_CHECKING

from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.data.documents import resolve_sources
    from cocomix.data.preparation import encode_share, prepare
    from cocomix.data.prepare_settings import PrepareSettings
    from cocomix.data.splits import TRAIN, VALIDATION
    from cocomix.data.token_blocks import DocumentBlocks, TokenBlocks, TokenShard, positions_of_rows
    from cocomix.data.tokenizer import begin_of_text, tokenizer_fingerprint, train_tokenizer
    from cocomix.data.tokens import MixedData, SplitMeta, Tokens, TokensFile, TokensManifest, id_dtype, warn_of_overlap

__all__ = [
    "TRAIN",
    "VALIDATION",
    "DocumentBlocks",
    "MixedData",
    "PrepareSettings",
    "SplitMeta",
    "TokenBlocks",
    "TokenShard",
    "Tokens",
    "TokensFile",
    "TokensManifest",
    "begin_of_text",
    "encode_share",
    "id_dtype",
    "positions_of_rows",
    "prepare",
    "resolve_sources",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "warn_of_overlap",
]

__getattr__ = lazily(__name__)
