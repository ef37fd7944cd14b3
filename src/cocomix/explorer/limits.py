"""What users of the explorer may ask of the machine that serves it, and the sentences that say so."""

from dataclasses import dataclass, replace

from cocomix.runtime.errors import CoCoMixError

__all__ = ["LIMITS", "Limits", "whole_number"]


@dataclass(frozen=True)
class Limits:
    """Bounds on every input. Our choice: what a laptop answers within seconds.

    Attributes:
        prompt_characters: length of a prompt, checked before it is tokenized.
        tokens: length of a text in tokens, a prompt and its continuation together.
        new_tokens: tokens to generate per text.
        edits: concepts turned at once.
        value: size of a steering value, twice the paper's largest factor.
        temperature: of sampling.
        seed: largest seed.
        search_characters: length of a search.
        running: requests that compute at once.
        waiting: requests that wait for their turn; further ones are told to come back.
    """

    prompt_characters: int = 8_000
    tokens: int = 512
    new_tokens: int = 200
    edits: int = 5
    value: float = 20.0
    temperature: float = 3.0
    seed: int = 2**31 - 1
    search_characters: int = 200
    running: int = 2
    waiting: int = 16

    def within(self, context: int) -> "Limits":
        """These limits for models that take `context` tokens at once: half of them at most are generated."""
        tokens = min(self.tokens, context)
        return replace(self, tokens=tokens, new_tokens=max(1, min(self.new_tokens, tokens // 2)))


LIMITS = Limits()


def whole_number(value: object, what: str, smallest: int, largest: int) -> int:
    """A whole number within its bounds, from text or a number.

    Raises:
        CoCoMixError: it is none, or out of range.
    """
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        raise CoCoMixError(f"{what} {_short(text)} is not a number; give {smallest} to {largest}.") from None
    if not (number.is_integer() and smallest <= number <= largest):
        raise CoCoMixError(f"{what} {_short(text)} is out of range; give a whole number from {smallest} to {largest}.")
    return int(number)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
