"""A labeller with the tiny teacher of `tests/concepts`, as a kind of its own; importable by worker processes."""

import os
import signal
import threading
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cocomix.concepts import (
    AttributionLabeller,
    ConceptLabels,
    ConceptTeacher,
    LabellerConfig,
    Vocabulary,
    register_labeller,
)
from cocomix.concepts.labellers.attribution import AttributionConfig
from cocomix.data import SplitMeta, Tokens, TokensFile, TokensManifest
from tests.concepts.conftest import VOCAB, make_dictionary, make_model

BLOCK = 9
_DRAWING = threading.Lock()  # weights are drawn from the process's generator


class TinyConfig(LabellerConfig):
    """Settings of `tiny`."""

    kind: Literal["tiny"] = "tiny"
    sign: Literal["loss", "logprob", "abs"] = "loss"
    kill: str = ""
    """A file: the process that labels first creates it and is killed."""
    seed: int = 0
    """Of the teacher's weights."""


@register_labeller("tiny")
class TinyLabeller(AttributionLabeller):
    """Attribution with random weights."""

    config_type: ClassVar[Any] = TinyConfig
    kill: str = ""

    def __init__(self, teacher: ConceptTeacher, **settings: Any) -> None:
        self.teacher = teacher
        self.settings = AttributionConfig(**settings).choices()  # its own configuration names no teacher
        self.dtype = self.settings.pop("dtype")

    @classmethod
    def build(cls, config: TinyConfig, *, device: Any = None, vocabulary: Vocabulary | None = None) -> "TinyLabeller":
        with _DRAWING:
            model = make_model("gpt2", seed=config.seed)
        begin = None if vocabulary is None else vocabulary.bos_token_id
        teacher = ConceptTeacher(model, make_dictionary(), 1, bos_token_id=begin)
        labeller = cls(teacher, sign=config.sign)
        labeller.kill = config.kill
        return labeller

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        if self.kill and not Path(self.kill).exists():
            Path(self.kill).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().label(input_ids, attention_mask, k=k)


def write_tokens(folder: Path, files: dict[str, list[NDArray[Any]]], *, vocab_size: int = VOCAB) -> Tokens:
    """A `Tokens` folder of these blocks [blocks, block_size], a list of files for each split; without a tokenizer."""
    splits = {}
    with Tokens.create(folder, identity={"toy": folder.name}) as staging:
        for split, members in files.items():
            names = []
            for number, blocks in enumerate(members):
                names.append(TokensFile(name=f"{split}-{number:05d}.npy", blocks=len(blocks)))
                np.save(staging.path / names[-1].name, blocks.astype("<u2").reshape(-1))
            total = sum(len(blocks) for blocks in members)
            splits[split] = SplitMeta(documents=1, tokens=total * BLOCK, bytes=0, blocks=total, files=tuple(names))
        manifest = TokensManifest(
            tokenizer_fingerprint="t" * 64,
            tokenizer_name="toy",
            vocab_size=vocab_size,
            eos_token_id=0,
            block_size=members[0].shape[1],
            seed=0,
            sources=(),
            splits=splits,
            invalid_utf8=0,
        )
        staging.finish(manifest)
    return Tokens.open(folder)


def toy_tokens(folder: Path, *, seed: int = 0) -> Tokens:
    """Two training files of 5 and 4 blocks, and one of 3 to validate on."""
    draw = np.random.default_rng(seed)
    files = {"train": [5, 4], "validation": [3]}
    blocks = {split: [draw.integers(1, VOCAB, (n, BLOCK)) for n in counts] for split, counts in files.items()}
    return write_tokens(folder, blocks)
