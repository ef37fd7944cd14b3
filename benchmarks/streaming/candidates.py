"""Every library behind one interface: batches of token blocks for one of several processes, and a state to resume."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

__all__ = ["CANDIDATES", "FORMATS", "Reader", "Settings", "import_mosaic", "mend_torchvision"]


@dataclass(frozen=True)
class Settings:
    """How a process reads.

    Attributes:
        place: folder or URL of the data.
        cache: folder for downloads.
        rank: of this process.
        world: number of processes.
        batch: blocks per process and step.
        workers: of the loader.
        block: tokens per block.
        epoch_steps: steps in one epoch.
        limit: bytes the cache may hold, if it is limited.
        shuffle_block: mosaicml-streaming's `shuffle_block_size`, if it is not the default.
        fresh_client: whether mosaicml-streaming's S3 client is dropped before workers are forked.
        names: files, for places that cannot be listed.
        seed: of the shuffling.
    """

    place: str
    cache: str
    rank: int
    world: int
    batch: int
    workers: int
    block: int
    epoch_steps: int
    limit: int | None = None
    shuffle_block: int | None = None
    fresh_client: bool = False
    names: tuple[str, ...] = ()
    seed: int = 7


class Reader:
    """Batches of one process."""

    def __init__(self, settings: Settings, states: list[Any] | None) -> None:
        """Open the data.

        Args:
            settings: how to read.
            states: what `state` gave in each process of the interrupted run.
        """
        raise NotImplementedError

    def batches(self) -> Iterator[np.ndarray]:
        """Batches, epoch after epoch. [batch, block]"""
        raise NotImplementedError

    def state(self) -> Any:
        """What JSON can hold and a new process can continue from."""
        raise NotImplementedError


def mend_torchvision() -> None:
    """Let torchvision be imported where it was built for another torch; mosaicml-streaming and transformers do so."""
    found = find_spec("torchvision")
    if torch.version.cuda is not None or found is None or found.origin is None or _LIBRARIES:
        return
    source = (Path(found.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
    for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', source):
        _LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # never called here


def import_mosaic() -> ModuleType:
    """The module of mosaicml-streaming."""
    mend_torchvision()
    import streaming

    return streaming


_LIBRARIES: list[Any] = []


class Mosaic(Reader):
    """mosaicml-streaming with its default shuffle, `py1e`."""

    def __init__(self, settings: Settings, states: list[Any] | None) -> None:
        os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
        streaming = import_mosaic()
        files_at_once = {} if settings.shuffle_block is None else {"shuffle_block_size": settings.shuffle_block}
        self.data = streaming.StreamingDataset(
            remote=settings.place,
            local=settings.cache,
            shuffle=True,
            shuffle_seed=settings.seed,
            batch_size=settings.batch,
            cache_limit=settings.limit,
            **files_at_once,
        )
        if settings.fresh_client:
            for stream in self.data.streams:
                stream._downloader.clean_up()  # its connection would be shared by all forked workers
        self.loader = streaming.StreamingDataLoader(
            self.data, batch_size=settings.batch, num_workers=settings.workers, drop_last=True
        )
        if states:
            self.loader.load_state_dict(states[0])

    def batches(self) -> Iterator[np.ndarray]:
        while True:
            for batch in self.loader:
                yield batch["tokens"].numpy()

    def state(self) -> Any:
        return self.loader.state_dict()


class LitData(Reader):
    """LitData with `TokensLoader` and `shuffle=True`."""

    def __init__(self, settings: Settings, states: list[Any] | None) -> None:
        import litdata
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the store of this benchmark has no TLS
        limit = {} if settings.limit is None else {"max_cache_size": f"{settings.limit}B"}
        self.data = litdata.StreamingDataset(
            input_dir=settings.place,
            cache_dir=settings.cache,
            shuffle=True,
            seed=settings.seed,
            drop_last=True,
            item_loader=litdata.TokensLoader(block_size=settings.block),
            # Without it, a state from S3 is refused wherever the cache is another folder.
            force_override_state_dict=bool(states) and "://" in settings.place,
            **limit,
        )
        self.loader = litdata.StreamingDataLoader(
            self.data, batch_size=settings.batch, num_workers=settings.workers, drop_last=True
        )
        if states:
            self.loader.load_state_dict(states[settings.rank % len(states)])

    def batches(self) -> Iterator[np.ndarray]:
        while True:
            for batch in self.loader:
                yield batch.numpy()

    def state(self) -> Any:
        return self.loader.state_dict()


class HuggingFace(Reader):
    """`datasets` streaming of tokens in Parquet, with torchdata's loader, as its documentation says."""

    buffer: int | None = 256

    def __init__(self, settings: Settings, states: list[Any] | None) -> None:
        from datasets import load_dataset
        from datasets.distributed import split_dataset_by_node
        from torchdata.stateful_dataloader import StatefulDataLoader

        names = settings.names or ("*.parquet",)
        files = [f"{settings.place}/{name}" for name in names if name.endswith(".parquet")]
        data = load_dataset("parquet", data_files=files, split="train", streaming=True)
        data = self._blocks(data, settings)
        if self.buffer is not None:
            data = data.shuffle(seed=settings.seed, buffer_size=self.buffer)
        self.data = split_dataset_by_node(data, settings.rank, settings.world).with_format("numpy")
        self.loader = StatefulDataLoader(
            self.data,
            batch_size=settings.batch,
            num_workers=settings.workers,
            drop_last=True,
            collate_fn=lambda rows: np.stack([row["tokens"] for row in rows]),
        )
        self.epoch = 0
        if states:
            state = states[settings.rank % len(states)]
            self.epoch = state["epoch"]
            self.data.set_epoch(self.epoch)
            self.loader.load_state_dict(state["loader"])

    def _blocks(self, data: Any, settings: Settings) -> Any:
        return data

    def batches(self) -> Iterator[np.ndarray]:
        while True:
            self.data.set_epoch(self.epoch)
            yield from self.loader
            self.epoch += 1

    def state(self) -> Any:
        return {"epoch": self.epoch, "loader": self.loader.state_dict()}


class HuggingFaceOrder(HuggingFace):
    """The same with only the order of files shuffled: a buffer of one."""

    buffer = 1


class HuggingFaceUnshuffled(HuggingFace):
    """The same, not shuffled at all."""

    buffer = None


class HuggingFaceText(HuggingFace):
    """Text in Parquet, tokenised and packed by `map` while reading; the rest of each 64 documents is dropped."""

    def _blocks(self, data: Any, settings: Settings) -> Any:
        encoder = _encoder(settings)

        def packed(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
            tokens = [token for text in encoder.encode_batch_fast(rows["text"]) for token in [*text.ids, 0]]
            full = len(tokens) // settings.block * settings.block
            return {"tokens": list(np.asarray(tokens[:full], dtype=np.uint16).reshape(-1, settings.block))}

        return data.map(packed, batched=True, batch_size=64, remove_columns=["text"])


class Flat(Reader):
    """The prototype of `benchmarks.streaming.flat`, with PyTorch's own loader."""

    def __init__(self, settings: Settings, states: list[Any] | None) -> None:
        from benchmarks.streaming.flat import FlatBlocks

        self.data = FlatBlocks(settings.place, Path(settings.cache), limit=settings.limit, seed=settings.seed)
        self.settings, self.read = settings, states[0] if states else 0

    def batches(self) -> Iterator[np.ndarray]:
        places = range(self.read + self.settings.rank, len(self.data), self.settings.world)
        loader = DataLoader(
            self.data,
            batch_size=self.settings.batch,
            sampler=places,
            num_workers=self.settings.workers,  # type: ignore[arg-type]
        )
        for batch in loader:
            self.read += self.settings.batch * self.settings.world
            yield batch.numpy()

    def state(self) -> Any:
        return self.read


def _encoder(settings: Settings) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(os.environ["BENCHMARK_TOKENIZER"])


# The lanes of the results, text tokenised by this library while training, were last in commit f41e0c6.
CANDIDATES: dict[str, type[Reader]] = {
    "mosaicml-streaming": Mosaic,
    "litdata": LitData,
    "datasets, buffer 256": HuggingFace,
    "datasets, buffer 1": HuggingFaceOrder,
    "datasets, unshuffled": HuggingFaceUnshuffled,
    "datasets, text": HuggingFaceText,
    "flat files": Flat,
}
FORMATS = {
    "mosaicml-streaming": "mds",
    "litdata": "litdata",
    "datasets, buffer 256": "parquet",
    "datasets, buffer 1": "parquet",
    "datasets, unshuffled": "parquet",
    "datasets, text": "text",
    "flat files": "flat",
}
