"""Which concepts a model predicts at each token of a text, and what they are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.data import TRAIN, Tokens, begin_of_text
from cocomix.evaluation import inference, run_labels
from cocomix.interpret.atlas_cards import WordLifts
from cocomix.interpret.atlas_pass import Array, goes_on
from cocomix.model import CoCoMixForCausalLM, predicts_concepts
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

_DESCRIBED_BLOCKS = 512
_FOLLOWED_TOKENS = 2**20
_LEAST_COUNT, _TERMS = 3, 5


def concept_model(model: PreTrainedModel, *, mixing: bool = False) -> CoCoMixForCausalLM:
    """The model; refused where it has no concepts or, with `mixing`, where they change nothing."""
    if not isinstance(model, CoCoMixForCausalLM):
        raise CoCoMixError(
            f"this model ({type(model).__name__}) has no concepts; use a run with the objective cocomix."
        )
    if not predicts_concepts(model):
        raise CoCoMixError(
            f"this model has no concepts (mixing: {model.config.mixing}, prediction: {model.config.prediction}); use a "
            "run that predicts them."
        )
    if mixing and not model.config.form.mixes_in:
        raise CoCoMixError(
            'this model predicts concepts but mixes none in (mixing: "none"), so steering them changes nothing; use a '
            "run with another mixing."
        )
    return model


def encode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, room: int = 0, cut: bool = False
) -> Tensor:
    """Tokens of a text on the model's device. [1, seq], int64

    They begin as the blocks that the model was trained on: with the begin-of-text token, if the tokenizer saved with it
    puts that there (see `cocomix prepare --prepend-bos`). No other special token is added. Refused where the text is
    empty or does not fit the model's context (both lengths are given), or the tokenizer is not the model's.

    Args:
        room: tokens that will be generated after the text.
        cut: cut the text at the context, instead of refusing a longer one.
    """
    if not text.strip():
        raise CoCoMixError("the text is empty; give at least one word.")
    begin = begin_of_text(tokenizer)
    ids: list[int] = [] if begin is None else [begin]
    ids += tokenizer.encode(text, add_special_tokens=False)
    context = model.config.max_position_embeddings
    ids = ids[:context] if cut else ids
    if len(ids) + room > context:
        asked = f"{len(ids)} tokens" if room == 0 else f"{len(ids)} tokens and {room} more are to be generated"
        remedy = "shorten it" if room == 0 else "shorten it, or generate fewer (--max-new-tokens)"
        raise CoCoMixError(f"the text has {asked}, but the model's context is {context} tokens; {remedy}.")
    if max(ids) >= model.config.vocab_size:
        raise CoCoMixError(
            f"the tokenizer yields token {max(ids)} but the model's vocabulary has {model.config.vocab_size} entries; "
            "use the tokenizer that was saved with the model."
        )
    return torch.tensor([ids], device=model.device)


@dataclass(frozen=True)
class PredictedConcept:
    """A concept mixed in at a token: its index, its logit z, and its rank (1 = largest)."""

    id: int
    logit: float
    rank: int


@dataclass(frozen=True)
class NextToken:
    """A likely continuation: its text and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class TokenConcepts:
    """What the model makes of one token.

    Attributes:
        position: place in the text, from 0.
        token: its text (a part of a multi-byte character shows as the replacement character).
        concepts: the strongest predictions at this token, strongest first.
        next_tokens: the likeliest next tokens, likeliest first.
    """

    position: int
    token: str
    concepts: tuple[PredictedConcept, ...]
    next_tokens: tuple[NextToken, ...]


def inspect_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, top: int = 5, top_next: int = 3
) -> list[TokenConcepts]:
    """The strongest predicted concepts and the likeliest next tokens at every token of a text.

    Refused where the model has no concepts, the text is empty or longer than the context, or `top` is out of range.

    Args:
        top: concepts per token, at most the model's concept_topk.
        top_next: next tokens per token.
    """
    model = concept_model(model)
    asked = ("top", top, model.config.concept_topk), ("top_next", top_next, model.config.vocab_size)
    for name, value, most in asked:
        if not 1 <= value <= most:
            raise CoCoMixError(f"{name}={value} is out of range; it must be between 1 and {most} for this model.")
    input_ids = encode(model, tokenizer, text)
    with inference(model, model.device, model.dtype):
        output = model(input_ids=input_ids, use_cache=False)
        likely = output.logits[0].float().softmax(-1).topk(top_next, dim=-1)  # [seq, top_next]
    columns = (input_ids[0], output.concept_ids[0], output.concept_values[0], likely.indices, likely.values)
    found: list[TokenConcepts] = []
    for token, ids, values, next_ids, shares in zip(*(column.tolist() for column in columns), strict=True):
        concepts = map(PredictedConcept, ids[:top], values[:top], range(1, top + 1))
        following = map(NextToken, (tokenizer.decode([one]) for one in next_ids), shares)
        found.append(TokenConcepts(len(found), tokenizer.decode([token]), tuple(concepts), tuple(following)))
    return found


@dataclass(frozen=True)
class ConceptDescription:
    """What a concept stands for, told by the training text it labels.

    Attributes:
        count: positions that have it as a label, within the blocks looked at.
        terms: words at these positions by lift, highest first.
        next_terms: words that follow them, likewise.
    """

    concept: int
    count: int
    terms: WordLifts = ()
    next_terms: WordLifts = ()

    @property
    def name(self) -> str:
        """The three words of highest lift."""
        return ", ".join(word for word, _ in self.terms[:3]) or f"concept {self.concept}"


def describe_run_concepts(run: Run, concepts: Sequence[int]) -> dict[int, ConceptDescription]:
    """Describe concepts by the words of highest lift at their labels in the first training blocks of the run's data.

    Descriptions are by index; there are none where data or labels are no longer where the run found them. A concept
    that does not exist is refused.
    """
    text = _labelled_text(run, concepts, _DESCRIBED_BLOCKS)
    if text is None:
        return {}
    data, tokens, labels = text
    found = labels.reshape(-1, labels.shape[-1])  # [positions, k_attr]
    positions, slots = np.isin(found, list(concepts)).nonzero()
    named = found[positions, slots]
    lifts = lifted_words(Words.of(data.tokenizer(), tokens), named, positions, limit=_TERMS, least=_LEAST_COUNT)
    return {
        concept: ConceptDescription(concept, int((named == concept).sum()), *lifts.get(concept, ((), ())))
        for concept in concepts
    }


def following_lifts(run: Run, concepts: Sequence[int]) -> Array | None:
    """log(how often a token follows a concept's labels ÷ how often it occurs), counted in the run's training text.

    The first token of a document follows nothing. Our choice: to what follows a concept 100 tokens of the whole text's
    mixture are added, so that few labels claim little; and at most a million tokens are read. Refused where a concept
    does not exist. float64 [concepts, vocab], nats; `None` where data or labels are no longer where the run found them.
    """
    text = _labelled_text(run, concepts, None)
    if text is None:
        return None
    data, tokens, labels = text
    every = np.bincount(tokens.ravel(), minlength=data.manifest.vocab_size) + 1.0
    share = every / every.sum()
    follows = goes_on(data.tokenizer(), tokens)[:, 1:]
    after = [tokens[:, 1:][(labels[:, :-1] == concept).any(-1) & follows] for concept in concepts]
    counts = np.stack([np.bincount(found, minlength=len(share)) for found in after])
    lifts: Array = np.log((counts + 100 * share) / (counts.sum(1, keepdims=True) + 100) / share)
    return lifts


def _labelled_text(run: Run, concepts: Sequence[int], blocks: int | None) -> tuple[Tokens, Array, Array] | None:
    """A run's data, and tokens [blocks, seq] and labels [blocks, seq, k_attr] of its first blocks, a million tokens of
    them where no number is given; `None` where data or labels are gone.
    """
    labels = run_labels(run)
    if labels is None or not Path(run.manifest.data.path).is_dir():
        return None
    for concept in concepts:
        if not 0 <= concept < labels.num_concepts:
            raise CoCoMixError(
                f"concept {concept} does not exist: the labels have concepts 0 to {labels.num_concepts - 1}."
            )
    data = Tokens.open(run.manifest.data.path)
    labels.require_tokens(data)
    text, store = data.split(TRAIN), labels.split(TRAIN)
    rows = range(min(blocks or _FOLLOWED_TOKENS // text.block_size, len(text)))
    tokens = np.stack([text[row]["input_ids"].numpy() for row in rows])
    return data, tokens, np.stack([store[row]["concept_labels"].numpy() for row in rows])


_LEAST_SHARE = 0.02
"""Of a concept's positions that must hold a word: else any rare word that only stands there would come first."""
_LEAST_LIFT = 1.5  # below it a word is about as common everywhere: a concept that is always there has no typical word
_LONGEST = 32  # letters; longer strings (keys, hashes) are cut
_HIDDEN = {" ": "·", "\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """A token's text with the invisible made visible: spaces as ·, line breaks as ↵, tabs as ⇥, the rest escaped."""
    return "".join(
        _HIDDEN.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )


@dataclass(frozen=True)
class Words:
    """The word at every position of some blocks; tokens of one word share it."""

    ids: Array  # index into `texts`. int32 [blocks, seq]
    # words in lower case; what has no letter or digit stands for itself, made visible; special tokens are ""
    texts: tuple[str, ...]
    goes_on: Array  # whether a position goes on with the one before it. bool [blocks, seq]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tokens: Array) -> "Words":
        """Join tokens to words: a word is a run of tokens without white space or punctuation between them."""
        pieces = {int(token): tokenizer.decode([int(token)]) for token in np.unique(tokens)}
        joins = {token: _wordlike(piece[:1]) for token, piece in pieces.items()}
        blank = {token: bool(piece) and not piece.strip(" ") for token, piece in pieces.items()}
        joined = {token: _wordlike(piece[-1:]) or blank[token] for token, piece in pieces.items()}
        known: dict[tuple[int, ...], int] = {}
        texts: dict[str, int] = {}
        ids = np.empty(tokens.shape, dtype=np.int32)
        for row, block in zip(ids, tokens.tolist(), strict=True):
            start = 0
            for end in range(1, len(block) + 1):
                if end < len(block) and joins[block[end]] and joined[block[end - 1]]:
                    continue
                word = tuple(block[start:end])
                if word not in known:
                    text = tokenizer.decode(list(word), skip_special_tokens=True)
                    shown = visible(text.strip().lower() or text)[:_LONGEST]
                    known[word] = texts.setdefault(shown, len(texts))
                row[start:end] = known[word]
                start = end
        return cls(ids, tuple(texts), goes_on(tokenizer, tokens))


def _wordlike(letter: str) -> bool:
    """Whether a letter continues a word; a part of a character (U+FFFD) does."""
    return letter.isalnum() or letter in ("_", "\ufffd")


def lifted_words(
    words: Words, concepts: Array, positions: Array, *, limit: int, least: int
) -> dict[int, tuple[WordLifts, WordLifts]]:
    """The words of highest lift at the positions of each concept, and of the tokens that follow these in a document.

    lift(word | concept) = (n_word,concept / n_concept) / (n_word / n). Frequency alone would name every concept by the
    corpus' commonest words; the logarithm of the lift is their pointwise mutual information.

    Args:
        concepts: int [n], a concept per entry.
        positions: int [n], where it is, counted over all blocks.
        least: positions of a concept at which a word must stand; 2% of them, if that is more.

    Returns:
        (words, following words) with their lifts of at least 1.5, highest first, by concept.
    """
    everywhere, goes_on = words.ids.ravel(), words.goes_on.ravel()
    here = _lifts(words, everywhere, concepts, everywhere[positions], limit, least)
    inside = np.append(goes_on[1:], False)[positions]
    there = _lifts(words, everywhere[goes_on], concepts[inside], everywhere[positions[inside] + 1], limit, least)
    return {concept: (here.get(concept, ()), there.get(concept, ())) for concept in np.unique(concepts).tolist()}


def _lifts(
    words: Words, everywhere: Array, concepts: Array, found: Array, limit: int, least: int
) -> dict[int, WordLifts]:
    """Words by lift for each concept that has any: `found` are the words at the concepts' places."""
    if len(concepts) == 0:
        return {}
    base = np.bincount(everywhere, minlength=len(words.texts)) / max(1, len(everywhere))
    pairs = pd.DataFrame({"concept": concepts, "word": found}).value_counts().rename("count").reset_index()
    share = pairs["count"] / pairs.groupby("concept")["count"].transform("sum")
    pairs["lift"] = share / base[pairs["word"]]
    worded = pairs["word"].map(lambda word: bool(words.texts[word]))
    kept = pairs[worded & (pairs["count"] >= least) & (share >= _LEAST_SHARE) & (pairs["lift"] >= _LEAST_LIFT)]
    order = kept.sort_values(["concept", "lift", "count", "word"], ascending=[True, False, False, True])
    lists: dict[int, list[tuple[str, float]]] = {}
    for row in order.groupby("concept").head(limit).itertuples():
        lists.setdefault(row.concept, []).append((words.texts[row.word], row.lift))
    return {concept: tuple(lifts) for concept, lifts in lists.items()}
