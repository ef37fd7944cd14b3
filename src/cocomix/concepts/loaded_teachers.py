"""Teachers in memory, so that steps that follow one another load a model and its tokenizer once."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.concepts.sources import TeacherConfig
from cocomix.concepts.teacher import load_teacher
from cocomix.runtime.hub import NoTokenizer, load_tokenizer


class LoadedTeachers:
    """Loads each teacher when it is first asked for, and keeps it for as long as this object is kept.

    Nothing looks whether a folder or a file has changed meanwhile: make an object for one piece of work and let go of
    it, which releases the memory.
    """

    def __init__(self) -> None:
        self._models: dict[Any, PreTrainedModel] = {}
        self._tokenizers: dict[Any, PreTrainedTokenizerFast | None] = {}

    def model(self, source: TeacherConfig, device: torch.device | str | None = None) -> PreTrainedModel:
        """The language model in float32, frozen, on a device (the CPU if None); see `load_teacher`.

        What computes in a narrower format does so by autocast, so that all share these weights.
        """
        key = (source.model, source.revision, str(device or "cpu"))
        if key not in self._models:
            self._models[key] = load_teacher(source.model, revision=source.revision, device=device)
        return self._models[key]

    def tokenizer(self, source: TeacherConfig) -> PreTrainedTokenizerFast | None:
        """The tokenizer that comes with a teacher; None where none does."""
        key = (source.model, source.revision)
        if key not in self._tokenizers:
            try:
                self._tokenizers[key] = load_tokenizer(source.model, source.revision)
            except NoTokenizer:
                self._tokenizers[key] = None
        return self._tokenizers[key]
