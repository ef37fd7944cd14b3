"""What the four views share: parameters and results, links that reproduce them, and sentences for the visitor."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from cocomix.explorer.subject import Subject
from cocomix.runtime.errors import CoCoMixError

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Arguments of an event that computes little."""


@dataclass(frozen=True)
class View:
    """A view of the page; equal parameters show equal pages."""

    name: str  # of its tab, and in links
    parameters: dict[str, Any]  # components by the names that links give their values
    said: gr.HTML  # where sentences for the visitor go; the first of what `show` fills
    results: list[Any]  # the other components that `show` fills
    # values of `parameters` → those of `said` and `results`, once or, of a text that grows, many times
    show: Callable[..., Iterator[list[Any]]]
    query: gr.Textbox  # the page's hidden box for the query of the link to what is shown
    subject: Subject

    def again(self, **options: Any) -> dict[str, Any]:
        """The event that shows the view with the parameters as they stand: arguments of `gr.on` and `then`."""

        def shown(*given: Any) -> Iterator[list[Any]]:
            try:
                known = zip(self.parameters.items(), given, strict=True)
                values = [_checked(component, name, value) for (name, component), value in known]
                link = self.link(values)
                for found in self.show(*values):
                    yield [link, *found]
            except CoCoMixError as error:
                yield [gr.skip(), message(error, "error"), *[gr.skip()] * len(self.results)]

        outputs = [self.query, self.said, *self.results]
        event = {"fn": shown, "inputs": list(self.parameters.values()), "outputs": outputs}
        return {**event, **QUIET, "concurrency_id": "model", "trigger_mode": "always_last", **options}

    def link(self, values: Sequence[Any]) -> str:
        """The query of a link to this view with these values of its parameters; it names the run."""
        told = (",".join(value) if isinstance(value, list) else "" if value is None else value for value in values)
        named = dict(zip(self.parameters, told, strict=True))
        return urlencode({"run": self.subject.fingerprint, "view": self.name, **named})

    def restored(self, query: Mapping[str, str]) -> list[Any]:
        """Values of the parameters from a link's query; what it leaves out stays, what no visitor could give is
        refused.
        """
        known = self.parameters.items()
        return [_checked(component, name, query[name]) if name in query else gr.skip() for name, component in known]


def check_run(subject: Subject, query: Mapping[str, str]) -> None:
    """Refuse a link that names another run, or none."""
    if query.get("run") != subject.fingerprint:
        raise CoCoMixError(
            f"this link is to run {query.get('run', 'unknown')[:12]}, but this explorer shows run "
            f"{subject.fingerprint} ({subject.run.manifest.name}); open it in an explorer of that run."
        )


def message(text: object, kind: str = "info") -> str:
    """A sentence for the visitor, as HTML; `kind` is `info` or `error`, and an error is read out at once."""
    told = str(text)
    role = "alert" if kind == "error" else "status"
    return f'<p class="cx-{kind}" role="{role}">{escape(told[:1].upper() + told[1:])}</p>'


def named(concept: int, names: Mapping[int, str]) -> str:
    """A concept's number and name; `concept 12` where it has none of its own."""
    name = names.get(concept, "")
    return name if name == f"concept {concept}" else f"{concept} {name}".strip()


def _checked(component: Any, name: str, value: Any) -> Any:
    """A value of a parameter, from its component or from the text of a link, within the component's bounds."""
    if isinstance(component, gr.Slider | gr.Number):
        low, high = component.minimum, component.maximum
        assert low is not None and high is not None  # noqa: PT018
        try:
            number = float(value or 0)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise CoCoMixError(f"{name} is {str(value)[:40]!r}; give a number from {low:g} to {high:g}.")
        return int(number) if component.precision == 0 else number
    if isinstance(component, gr.CheckboxGroup | gr.Radio):
        several, known = isinstance(component, gr.CheckboxGroup), [str(choice) for _, choice in component.choices]
        wanted = value.split(",") if several and isinstance(value, str) else value if several else [value]
        for one in wanted:
            if one not in known:
                raise CoCoMixError(f"{name} {str(one)[:40]!r} must be one of {', '.join(known)}.")
        return wanted if several else value
    if len(value or "") > component.max_length:
        raise CoCoMixError(f"{name} has {len(value):,} characters; at most {component.max_length:,} are read.")
    return value or ""
