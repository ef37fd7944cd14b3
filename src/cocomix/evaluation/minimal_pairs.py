"""Minimal pairs in the manner of BLiMP, made from a run's held-out text by rules that need no model.

A sentence stands beside itself with one mistake in it; a model is right where the sentence has the larger total
log-probability, read alone after an end-of-document token. Chance is 50%. The mistakes (our choice; English):

- `agreement`: the first "this" or "these" before a word that is no function word becomes the other.
- `order`: two content words side by side, in lower case and not of one text, change places.
- `preposition`: one of `PREPOSITIONS` becomes another of them.

Some mistakes leave a good sentence, so that nobody reaches 100%: compare models, of the same text. At most
`PER_DOCUMENT` pairs of a kind are of one document.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.artifacts import write_json
from cocomix.data import Tokens, begin_of_text
from cocomix.evaluation.inference import inference, token_losses
from cocomix.evaluation.loss_slices import FUNCTION_WORDS
from cocomix.evaluation.pages import NOTHING, Table
from cocomix.evaluation.run_evaluation import EVALUATIONS
from cocomix.evaluation.run_inputs import open_run_data, run_blocks
from cocomix.evaluation.statistics import document_interval
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.section import Record
from cocomix.training import Run

PREPOSITIONS = ("of", "in", "to", "for", "with", "on", "at", "by", "from")
PER_DOCUMENT = 5
_WORDS = (5, 40)  # of a sentence
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_DEMONSTRATIVE = re.compile(r"\b(this|these)(?= ([a-z]+)\b)", re.IGNORECASE)
_NEIGHBOURS = re.compile(r"\b(?=([a-z]{3,}) ([a-z]{3,})\b)")
_PREPOSITION = re.compile(rf"\b({'|'.join(PREPOSITIONS)})\b")

Generator = np.random.Generator


class Pair(NamedTuple):
    """A sentence, the same with a mistake of one kind, and the number of its document."""

    kind: str
    good: str
    bad: str
    document: int


def _agreement(sentence: str, generator: Generator) -> str | None:
    found = next((one for one in _DEMONSTRATIVE.finditer(sentence) if one[2] not in FUNCTION_WORDS), None)
    if found is None:
        return None
    other = {"this": "these", "these": "this"}[found[1].lower()]
    return _with(sentence, found, other.capitalize() if found[1][0].isupper() else other)


def _order(sentence: str, generator: Generator) -> str | None:
    found = [
        one for one in _NEIGHBOURS.finditer(sentence) if not {one[1], one[2]} & FUNCTION_WORDS and one[1] != one[2]
    ]
    if not found:
        return None
    one = found[generator.integers(len(found))]
    return sentence[: one.start()] + f"{one[2]} {one[1]}" + sentence[one.end(2) :]


def _preposition(sentence: str, generator: Generator) -> str | None:
    found = [*_PREPOSITION.finditer(sentence)]
    if not found:
        return None
    one = found[generator.integers(len(found))]
    others = [word for word in PREPOSITIONS if word != one[1]]
    return _with(sentence, one, others[generator.integers(len(others))])


MISTAKES: dict[str, Callable[[str, Generator], str | None]] = {
    "agreement": _agreement,
    "order": _order,
    "preposition": _preposition,
}
"""The sentence with one mistake; `None` where it has no place for one."""


def _with(sentence: str, found: re.Match[str], word: str) -> str:
    return sentence[: found.start(1)] + word + sentence[found.end(1) :]


def make_pairs(documents: Iterable[str], *, limit: int, seed: int = 0) -> list[Pair]:
    """Pairs of every kind, at most `limit` each, in the order of the text; `seed` chooses places and prepositions."""
    generator, made = np.random.default_rng(seed), []
    counts: Counter[str] = Counter()
    for number, document in enumerate(documents):
        here: Counter[str] = Counter()
        for sentence in filter(None, map(str.strip, _SENTENCE.split(document))):
            if not _WORDS[0] <= len(sentence.split()) <= _WORDS[1]:
                continue
            for kind, mistake in MISTAKES.items():
                if counts[kind] >= limit or here[kind] >= PER_DOCUMENT:
                    continue
                if (bad := mistake(sentence, generator)) is not None:
                    made.append(Pair(kind, sentence, bad, number))
                    counts[kind] += 1
                    here[kind] += 1
        if all(counts[kind] >= limit for kind in MISTAKES):
            break
    return made


class PairAccuracy(Record):
    """How often the sentence was likelier than the one with a mistake."""

    kind: str  # of mistake; `all` together
    pairs: int  # how many; a tie counts half
    documents: int  # they are of
    accuracy: float  # share of 1; chance is 0.5
    low: float  # lower end of its 95% interval over documents
    high: float  # upper end

    @property
    def interval(self) -> str:
        """The interval for people; a dash of a single document, which has none."""
        return f"{self.low:.1%} … {self.high:.1%}" if self.documents > 1 else NOTHING


class MinimalPairs(Record):
    """A run's accuracies."""

    format_version: Literal[1] = 1
    run: str
    seed: int
    data_fingerprint: str  # of the data whose validation text the sentences are of
    too_long: int  # pairs left out because they exceed the model's context
    kinds: tuple[PairAccuracy, ...]  # of mistakes, and `all`

    def table(self) -> Table:
        """For people."""
        rows = [
            (one.kind, f"{one.accuracy:.1%}", one.interval, f"{one.pairs:,}", f"{one.documents:,}")
            for one in self.kinds
        ]
        right, interval = "right, higher is better; chance 50%", "95% interval, over documents"
        headings = ("mistake", right, interval, "pairs", "documents")
        return Table(headings, rows, caption=f"Minimal pairs of {self.run}, seed {self.seed}")


def measure_pairs(
    run: Run, *, device: torch.device, limit: int = 500, batch_size: int = 8, dtype: torch.dtype = torch.float32
) -> MinimalPairs:
    """Make pairs from a run's validation text, score them, and write `minimal_pairs.json` among its evaluations.

    Refused where a number is not positive, the data cannot be read, or its text has no place for a mistake.

    Args:
        limit: pairs of a kind, at most.
        batch_size: sentences per forward pass, in blocks of the run's length or less.
        dtype: float32, or a narrower type used through autocast.
    """
    if limit < 1 or batch_size < 1:
        raise CoCoMixError(f"limit={limit} and batch_size={batch_size} must be at least 1.")
    data, tokenizer = open_run_data(run), run.tokenizer()
    pairs = make_pairs(_documents(run, data, tokenizer), limit=limit)
    begin = begin_of_text(tokenizer)
    begin = data.manifest.eos_token_id if begin is None else begin
    model = run.model()
    coded = [
        [[begin, *tokenizer.encode(text, add_special_tokens=False)] for text in (one.good, one.bad)] for one in pairs
    ]
    context = model.config.max_position_embeddings
    fitting = [(one, two) for one, two in zip(pairs, coded, strict=True) if max(map(len, two)) <= context]
    if not fitting:
        raise CoCoMixError(
            f"no sentence of the validation text of {data.path} has a place for a mistake and fits a context of "
            f"{context} tokens; minimal pairs need English text."
        )
    sentences = [ids for _, two in fitting for ids in two]
    scores = score_pairs(model, sentences, batch_size=batch_size, device=device, dtype=dtype)
    result = MinimalPairs(
        run=run.manifest.name,
        seed=run.manifest.seed,
        data_fingerprint=data.manifest.fingerprint,
        too_long=len(pairs) - len(fitting),
        kinds=tuple(_accuracies([one for one, _ in fitting], scores[0::2] - scores[1::2])),
    )
    file = run.path / EVALUATIONS / f"minimal_pairs-{limit}-{str(dtype).removeprefix('torch.')}" / "minimal_pairs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result.model_dump())
    return result


def score_pairs(
    model: PreTrainedModel,
    sentences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.float64]:
    """Σ_t log p(x_t | x_{<t}) of each sentence, in nats, without its first token. [sentences]"""
    scores = np.empty(len(sentences))
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))  # little padding
    with inference(model, device, dtype), progress("scoring minimal pairs", len(order), "sentences") as advance:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [torch.tensor(sentences[index]) for index in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE).to(device)
            read = ids != IGNORE
            output = model(input_ids=ids.masked_fill(~read, 0), attention_mask=read.long(), use_cache=False)
            scores[chosen] = -token_losses(output.logits, ids).sum(-1).numpy()
            advance(len(chosen))
    return scores


def _documents(run: Run, data: Tokens, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    blocks = run_blocks(run, data, None)
    ids, documents = blocks.ids.ravel(), blocks.documents.ravel()
    for one in np.split(ids, np.flatnonzero(np.diff(documents)) + 1):
        yield str(tokenizer.decode(one.tolist(), skip_special_tokens=True))


def _accuracies(pairs: Sequence[Pair], gaps: NDArray[np.float64]) -> Iterator[PairAccuracy]:
    every = pd.DataFrame(pairs).assign(right=np.where(gaps == 0, 0.5, gaps > 0))
    for kind, some in (*every.groupby("kind"), ("all", every)):
        low, high = document_interval(some["right"].to_numpy(), some["document"].to_numpy())
        of, accuracy = some["document"].nunique(), some["right"].mean()
        yield PairAccuracy(kind=str(kind), pairs=len(some), documents=of, accuracy=accuracy, low=low, high=high)
