"""The verb `label`."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group

from cocomix.cli.job_options import Blocks, JobOptions, asked_of
from cocomix.cli.label_options import LabelOptions
from cocomix.cli.options import DataFolder
from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.labelling import LabelContent


def label(
    *,
    data: DataFolder,
    source: LabelOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; default DATA/labels.")] = None,
    scores: Annotated[
        Literal["none", "float16", "float32"], typer.Option(help="Type in which scores are kept; none halves the room.")
    ] = "float16",
    blocks: Blocks = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Folder for the teacher's likeliest next tokens, as `cocomix distill` stores them."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Probabilities kept per token; default: 64, of another tokenizer 32.")
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Complete a folder whose parts are all computed.")] = False,
    force: Annotated[
        bool, typer.Option(help="Use a dictionary that does not fit the layer, or a dtype that changes labels.")
    ] = False,
    options: JobOptions,
) -> Printed:
    """Label tokens with the concepts that matter next.

    With --probabilities the teacher is loaded once, and where labels are made of its hidden states alone (activation,
    contextual, random) it reads the text once for both. Attribution needs a gradient, and so a pass of its own.

    A command that was stopped goes on with what is left when it is given again.

    [dim]Example: cocomix label data/books --teacher openai-community/gpt2 --dictionary sae/books[/dim]
    """
    from cocomix import labelling  # whose names are imported when they are used: a finished folder needs no PyTorch
    from cocomix.experiments import next_step

    if top_k is not None and probabilities is None:
        raise CoCoMixError(f"--top-k {top_k} is about probabilities; name a folder for them with --probabilities.")
    if finish and options.shard is not None:
        raise CoCoMixError("--shard labels a part and --finish completes the folder; give one of them.")
    folder = output or data / "labels"
    asked = asked_of(**asdict(source), scores=scores, batch_tokens=options.batch_tokens, blocks=blocks)
    distilled_as = {**asked, "top_k": top_k}
    wanted: list[tuple[Any, Path, dict[str, Any]]] = [(labelling.Labels, folder, asked)]
    wanted += [] if probabilities is None else [(labelling.TeacherProbabilities, probabilities, distilled_as)]
    found = [labelling.recognised(kind, place, data, given) for kind, place, given in wanted]
    if finish:
        orders = zip(found, wanted, strict=True)
        found = [there or labelling.finish(kind, place, data) for there, (kind, place, _) in orders]
    if not all(found):
        how: dict[str, Any] = {"scores": scores, "force": force, "blocks": blocks, "job": options.job(asked)}
        config = source.labeller()
        if probabilities is None:
            found = [labelling.label_data(data, config, folder, **how)]
        else:
            how |= {"top_k": top_k, "distilled_as": distilled_as}
            found = list(labelling.label_and_distill(data, config, folder, probabilities, **how))
    manifests = [made.manifest for made in found if made is not None]
    if len(manifests) < len(wanted):
        return Printed({"finished": False})
    content = manifests[0].content
    stored = {} if probabilities is None else {"probabilities": manifests[1].model_dump(mode="json")}
    return Printed(
        {**manifests[0].model_dump(mode="json"), **stored},
        None if content is None else _content_tables(content),
        next=next_step(folder) or f"cocomix init --corpus {shlex.quote(str(data))}",
    )


def _content_tables(content: "LabelContent") -> Group:
    shares = (
        ("one list for all positions", content.static_recall_at_labels, content.static_recall_at_32),
        ("a list for every current token", content.token_recall_at_labels, content.token_recall_at_32),
    )
    rows = [(what, f"{100 * few:.1f}", f"{100 * many:.1f}") for what, few, many in shares]
    found = table(rows, "labels found without context, %", f"in the first {content.k}", "in the first 32")
    others = [
        ("entropy of a label, nats", f"{content.entropy:.2f}"),
        ("entropy of a label given the current token, nats", f"{content.entropy_given_token:.2f}"),
        (
            f"concepts that label any of {content.positions:,} training positions",
            f"{content.concepts_used:,} of {content.num_concepts:,}",
        ),
        ("labels that are of the most frequent concept, %", f"{100 * content.top_share:.1f}"),
    ]
    return Group(found, "", table(others))
