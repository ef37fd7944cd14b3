"""What a teacher gives a student's tokens to be distilled from; the arrays are described in `stored_probabilities`.

A teacher of the data's tokenizer gives its distributions. One of another tokenizer is aligned by bytes: where a token
of the student and one of the teacher end at the same byte (a *common end*), both predict the text that follows.

* `first_token` [ours]: the student's token s has the probability p(s) = Σ p_T(v) over the teacher's tokens v whose
  bytes the student's tokenizer splits with s first (`student_pieces`). What tokens without pieces hold, and what is
  not among the largest, is the rest, as for a teacher of the same tokenizer. *Within* a token of the teacher, of which
  the student has read the pieces c since the common end, p(s) = Σ p_T(v) over the v that split with c and then s,
  divided by that over all v that go on after c. Without these targets a student is taught that every text ends where
  the teacher's token may end, because it has targets only where one did.
* `uld` (arXiv 2402.12030): the teacher's largest probabilities without their tokens.
* `alm` (arXiv 2503.20083): of every *chunk*, the text between two common ends, the teacher's log-likelihood.

No target have, but for that, positions without a common end, the first `UNREAD` of a teacher's window (nothing was read
before them), ends of documents (what follows is another's), and those around bytes that the teacher did not read: of a
character that the block's edge cuts. The teacher reads whole blocks, as for labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts import (
    AlignedText,
    AlignedTexts,
    FrozenDecoder,
    Window,
    model_fingerprint,
    package_versions,
    pad_right,
    student_pieces,
)
from cocomix.labelling.stored_probabilities import ALGORITHMS, ProbabilityDtype, TargetKind
from cocomix.runtime.errors import CoCoMixError

_CHUNK_ELEMENTS = 2**22  # probabilities held at once: 16 MiB, which caches hold
_LEAST = -60_000.0  # log-probability that float16 holds and that stands for 0
_LONGEST = 255  # tokens of a chunk


class PlainDistiller:
    """The `top_k` largest probabilities at every position of a teacher of the data's tokenizer."""

    kind: TargetKind = "top_k"

    def __init__(self, decoder: FrozenDecoder, top_k: int, vocab_size: int, dtype: ProbabilityDtype) -> None:
        self.decoder, self.top_k, self.vocab_size, self.dtype = decoder, top_k, vocab_size, dtype

    def fingerprint(self) -> dict[str, str]:
        """What the arrays depend on."""
        weights = model_fingerprint(self.decoder.model)
        return {"weights": weights, "algorithm": ALGORITHMS[self.kind], "versions": package_versions()}

    def flops_per_token(self, seq: int) -> float:
        """Forward FLOPs, by formula; of another tokenizer's teacher, as if it had as many tokens."""
        return self.decoder.flops_per_token(seq, up_to="head")

    @torch.no_grad()
    def arrays(self, input_ids: Tensor) -> Mapping[str, NDArray[Any]]:
        """The arrays of a batch of the student's blocks, int64 [batch, seq], by name.

        Log-probabilities are taken in float32, and over the student's tokens: a head padded beyond them is cut.
        """
        states, head = self.decoder.predictions(input_ids.to(self.decoder.device), dtype=getattr(torch, self.dtype))
        ids, log_probs = [], []
        for row in states:  # logits of one row at a time
            if head is not None:
                row = F.linear(row, head.weight.to(row.dtype), None if head.bias is None else head.bias.to(row.dtype))
            best = row[:, : self.vocab_size].log_softmax(-1, dtype=torch.float32).topk(self.top_k, dim=-1)
            ids.append(best.indices.cpu())
            log_probs.append(best.values.cpu())
        return {"ids": torch.stack(ids).numpy(), "log_probs": torch.stack(log_probs).numpy()}


class AlignedDistiller(PlainDistiller):
    """Targets of a teacher of any tokenizer, of the kinds `first_token`, `uld` and `alm`; the last keeps no `top_k`.

    Raises:
        CoCoMixError: the teacher's tokenizer cannot be inverted to bytes (only for `first_token`), or the teacher has
            fewer than `top_k` tokens.
    """

    def __init__(
        self,
        decoder: FrozenDecoder,
        top_k: int,
        vocab_size: int,
        dtype: ProbabilityDtype,
        kind: TargetKind,
        texts: AlignedTexts,
    ) -> None:
        super().__init__(decoder, top_k, vocab_size, dtype)
        self.kind, self._texts = kind, texts
        rows = int(decoder.model.get_output_embeddings().weight.shape[0])
        self._width = min(max(texts.teacher.get_vocab().values()) + 1, rows)  # heads are often padded
        if kind == "uld" and top_k > self._width:
            raise CoCoMixError(f"top_k={top_k} is more than the teacher's {self._width} tokens; keep fewer.")
        self._splits: _Splits | None = None
        if kind == "first_token":
            pieces = student_pieces(texts.student, texts.teacher)[: self._width]
            self._splits = _Splits(pieces, vocab_size, decoder.device)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), **self._texts.fingerprint}

    def arrays(self, input_ids: Tensor) -> Mapping[str, NDArray[Any]]:
        rows = input_ids.cpu().numpy()
        texts = [self._texts.read(row) for row in rows]
        shape = input_ids.shape if self.kind == "alm" else (*input_ids.shape, self.top_k)
        log_probs = np.full(shape, -np.inf, dtype=np.float32)
        integers = np.zeros(shape, dtype=np.int64)
        for window, states, head in self._read(texts):
            text = texts[window.row]
            if self.kind == "alm":
                starts, lengths, likelihoods = self._chunks(text, window, states, head)
                log_probs[window.row, starts], integers[window.row, starts] = likelihoods, lengths
                continue
            at, branches = _followed(text, window), list[_Branch]()
            if self._splits is not None:
                at, branches = self._splits.with_those_within(text, at, rows[window.row])
            states = states[torch.from_numpy(text.positions()[at] - window.start)]
            integers[window.row, at], log_probs[window.row, at] = self._largest(states, head, branches)
        names = {"alm": ("lengths",), "first_token": ("ids",), "uld": ()}[self.kind]
        return {"log_probs": log_probs, **dict.fromkeys(names, integers)}

    @torch.no_grad()
    def _read(self, texts: list[AlignedText]) -> Iterator[tuple[Window, Tensor, Any]]:
        """Windows with the teacher's states [window, d_model], or logits where the head is None."""
        windows = self._texts.windows(texts)
        if not windows:
            return
        # Causal attention does not look at padding on the right, so that no mask is needed, which would cost time.
        batch, _ = pad_right([torch.tensor(window.tokens) for window in windows])
        states, head = self.decoder.predictions(batch.to(self.decoder.device), dtype=getattr(torch, self.dtype))
        if head is not None:
            states = states.to(getattr(torch, self.dtype))  # a final norm may have left them in float32
        weight = None if head is None else head.weight[: self._width].to(states.dtype)
        bias = None if head is None or head.bias is None else head.bias[: self._width].to(states.dtype)
        for row, window in enumerate(windows):
            yield window, states[row], (weight, bias)

    def _log_softmax(self, states: Tensor, head: Any) -> Iterator[tuple[slice, Tensor]]:
        """Log-probabilities [chunk, teacher's tokens], float32, of states [n, …], a chunk after another."""
        size = max(1, _CHUNK_ELEMENTS // self._width)
        for start in range(0, len(states), size):
            rows = slice(start, min(start + size, len(states)))
            logits = states[rows, : self._width] if head[0] is None else F.linear(states[rows], *head)
            yield rows, logits.log_softmax(-1, dtype=torch.float32)

    @torch.no_grad()
    def _largest(
        self, states: Tensor, head: Any, branches: Sequence["_Branch"]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The largest probabilities and their tokens in the student's vocabulary: ids and log-probs, [n, K] each.

        `branches` are of the last of the n states, which the student reads within a token of the teacher.
        """
        ids = torch.zeros(len(states), self.top_k, dtype=torch.int64)
        log_probs = torch.zeros(len(states), self.top_k)
        ends = len(states) - len(branches)
        for rows, found in self._log_softmax(states, head):
            if self._splits is None:
                log_probs[rows] = found.topk(self.top_k, dim=-1).values.cpu()
                continue
            whole = max(0, min(ends - rows.start, len(found)))
            marginal = found.new_zeros(len(found), self.vocab_size + 1)
            marginal[:whole].index_add_(1, self._splits.first, found[:whole].exp())
            if within := branches[max(rows.start - ends, 0) : max(rows.stop - ends, 0)]:
                teacher, student = (torch.cat(parts) for parts in zip(*within, strict=True))
                lengths = torch.tensor([len(branch.teacher) for branch in within], device=found.device)
                row = torch.arange(whole, len(found), device=found.device).repeat_interleave(lengths)
                scores = found[row, teacher]
                most = found.new_full((len(found),), -torch.inf).scatter_reduce(0, row, scores, "amax")
                marginal.index_put_((row, student), (scores - most[row]).exp(), accumulate=True)
                marginal[whole:] /= marginal[whole:].sum(-1, keepdim=True)
            best = marginal[:, : self.vocab_size].topk(self.top_k, dim=-1)
            ids[rows], log_probs[rows] = best.indices.cpu(), best.values.log().cpu()
        return ids.numpy(), log_probs.clamp_min(_LEAST).numpy()

    @torch.no_grad()
    def _chunks(
        self, text: AlignedText, window: Window, states: Tensor, head: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The chunks that begin in a window: position of the student before each, its tokens, its log-likelihood."""
        next_tokens = torch.tensor(window.tokens[1:], device=states.device)
        picked = torch.zeros(len(next_tokens), dtype=torch.float64)  # sums of differences: float32 would lose digits
        for rows, found in self._log_softmax(states[: len(next_tokens)], head):
            picked[rows] = found.gather(1, next_tokens[rows, None])[:, 0].cpu().double()
        before = np.concatenate(([0.0], picked.cumsum(0).numpy()))  # [window], of the tokens after the first
        common = text.common()
        ends = np.flatnonzero(common >= 0)
        starts, stops = ends[:-1], ends[1:]
        unread = np.concatenate(([0], np.cumsum(~text.readable)))
        own = np.isin(starts, _followed(text, window)) & (common[stops] < window.start + len(window.tokens))
        own &= (unread[stops + 1] == unread[starts + 1]) & (stops - starts <= _LONGEST)
        own &= common[stops] > common[starts]
        starts, stops = starts[own], stops[own]
        likelihoods = before[common[stops] - window.start] - before[common[starts] - window.start]
        return starts, stops - starts, likelihoods.clip(_LEAST).astype(np.float32)


def _followed(text: AlignedText, window: Window) -> NDArray[np.int64]:
    """The student's positions at common ends from which a window predicts what follows in the document."""
    common = text.common()
    inside = (common >= window.first) & (common < window.start + len(window.tokens))
    found: NDArray[np.int64] = np.flatnonzero(inside & ~text.closing)
    return found


class _Branch(NamedTuple):
    """How tokens of the teacher go on after the same pieces."""

    teacher: Tensor  # the tokens, int64 [n]
    student: Tensor  # the next piece of each, int64 [n]


class _Splits:
    """The student's pieces of the teacher's tokens (`student_pieces`), to add up probabilities by."""

    def __init__(self, pieces: Sequence[tuple[int, ...]], vocab_size: int, device: torch.device) -> None:
        self.first = torch.tensor([split[0] if split else vocab_size for split in pieces], device=device)  # [tokens]
        branches: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for token, split in enumerate(pieces):
            for end in range(1, len(split)):
                branches.setdefault(split[:end], []).append((token, split[end]))
        self._branches = {
            read: _Branch(*torch.tensor(found, device=device).unbind(1)) for read, found in branches.items()
        }

    def with_those_within(
        self, text: AlignedText, ends: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], list[_Branch]]:
        """Positions of the student's tokens, `row` [seq], that have a target, and how those within a token go on.

        First the `ends`, common ends that are followed by text; then the positions after one, before the teacher's
        token ends, as long as one of the teacher's tokens begins so.
        """
        read, found = text.positions(), dict[int, _Branch]()
        for end in ends.tolist():
            for position in range(end + 1, len(row)):
                branch = self._branches.get(tuple(row[end + 1 : position + 1].tolist()))
                if branch is None or read[position] != read[end]:
                    break
                found[position] = branch
        return np.concatenate((ends, np.array(list(found), dtype=np.int64))), list(found.values())
