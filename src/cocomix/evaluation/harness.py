"""lm-evaluation-harness around a model: what does not fit the context is counted, and progress is shown.

Imports the harness, which is an optional part (`pip install 'cocomix[eval]'`); see `cocomix.evaluation.downstream`.
"""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.data import begin_of_text
from cocomix.runtime.console import progress

Request = tuple[tuple[str, str], list[int], list[int]]


class CountingModel(HFLM):  # type: ignore[misc]
    """A causal LM as the harness wants it, that counts what it scored and had to cut (see `downstream.TaskResult`)."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, batch_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=model.config.max_position_embeddings,
            mixed_precision_dtype=None if dtype == torch.float32 else dtype,
        )
        self._begin = begin_of_text(tokenizer)
        self.add_bos_token = self._begin is not None  # as in training, whatever the harness thinks of the architecture
        self.requests = self.truncated = self.endings_cut = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Without bars of the harness's own."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Likewise; the harness begins a text with the begin-of-text token itself, which must not come twice."""
        self.add_bos_token = False
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm=True))
        finally:
            self.add_bos_token = self._begin is not None

    def _loglikelihood_tokens(self, requests: list[Request], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Count, cut endings that cannot fit, and score a few batches at a time. The harness cuts the prompts."""
        fitting = []
        for texts, context, ending in requests:
            self.truncated += len(context) + len(ending) > self.max_length + 1
            self.endings_cut += len(ending) > self.max_length
            ending = ending[: self.max_length]
            room = self.max_length + 1 - len(ending)
            if self._begin is not None and len(context) > room >= 2 and context[0] == self._begin:
                context = [self._begin, *context[1 - room :]]  # the harness would cut begin-of-text off
            fitting.append((texts, context, ending))
        self.requests += len(requests)
        # Longest first, as the harness does within a call, so that a batch holds requests of like length.
        order = sorted(range(len(fitting)), key=lambda index: -len(fitting[index][1]) - len(fitting[index][2]))
        scores: dict[int, tuple[float, bool]] = {}
        at_once = 16 * int(self.batch_size)
        with progress("scoring", len(fitting), "requests") as advance:
            for start in range(0, len(order), at_once):
                chosen = order[start : start + at_once]
                part = super()._loglikelihood_tokens([fitting[index] for index in chosen], disable_tqdm=True)
                scores |= zip(chosen, part, strict=True)
                advance(len(chosen))
        return [scores[index] for index in range(len(fitting))]
