"""Data: documents out of many sources, tokenizers, and packed token blocks. Knows nothing of concepts or models."""

from cocomix.data.blocks import BlockWriter, ShardMeta, SplitMeta, TokenBlocks, TokenShard, token_dtype
from cocomix.data.document_blocks import NO_TARGET, DocumentBlocks, document_positions, positions_of_rows
from cocomix.data.documents import DOCUMENTATION, Document, Source, read_documents, resolve_sources
from cocomix.data.mixture import MixedData
from cocomix.data.preparation import PrepareSettings, prepare
from cocomix.data.prepared import FORMAT_VERSION, DataMeta, PreparedData, SourceMeta
from cocomix.data.splits import TRAIN, VALIDATION, assign_splits
from cocomix.data.stream_blocks import StreamBlocks
from cocomix.data.streamed import StreamedData
from cocomix.data.tokenizer import begin_of_text, tokenizer_fingerprint, train_tokenizer

__all__ = [
    "DOCUMENTATION",
    "FORMAT_VERSION",
    "NO_TARGET",
    "TRAIN",
    "VALIDATION",
    "BlockWriter",
    "DataMeta",
    "Document",
    "DocumentBlocks",
    "MixedData",
    "PrepareSettings",
    "PreparedData",
    "ShardMeta",
    "Source",
    "SourceMeta",
    "SplitMeta",
    "StreamBlocks",
    "StreamedData",
    "TokenBlocks",
    "TokenShard",
    "assign_splits",
    "begin_of_text",
    "document_positions",
    "positions_of_rows",
    "prepare",
    "read_documents",
    "resolve_sources",
    "token_dtype",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
