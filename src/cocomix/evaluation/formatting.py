"""Numbers as people read them: the same in tables, figures and sentences."""

NOTHING = "\u2013"
"""A dash in the place of a number that does not exist."""

_MINUS = "\u2212"
_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float) -> str:
    """Three significant digits with an SI prefix: 3_012_345 → `3.01 M`."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `6 min 14 s` or `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def signed(value: float) -> str:
    """A difference of losses with its sign and a true minus: `−0.298`, `+0.010`."""
    return f"{value:+.3f}".replace("-", _MINUS)


def percent(share: float) -> str:
    """A share of 1 as a percentage with one decimal: 0.215 → `21.5%`."""
    return f"{100 * share:.1f}%".replace("-", _MINUS)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, within a table cell too."""
    for sign in "\\`*_[]<>|#~":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
