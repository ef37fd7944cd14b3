"""The verb `label`: options that say how labels are made, laid over what a recipe says of it."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group

from cocomix.cli.job_options import Blocks, JobOptions, asked_of
from cocomix.cli.options import DataFolder, Revision
from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.concepts import LabellerConfig
    from cocomix.labelling import LabelContent


@dataclass(frozen=True)
class LabelOptions:
    """How labels are made; every field is an option."""

    recipe: Annotated[Path | None, typer.Option(help="Take from a recipe how labels are made.")] = None
    kind: Annotated[str | None, typer.Option(help="Kind of labels: attribution (default), future_words …")] = None
    teacher: Annotated[str | None, typer.Option(help="Causal language model: Hub name, folder or GGUF file.")] = None
    dictionary: Annotated[str | None, typer.Option(help="SAELens release, or folder of an autoencoder.")] = None
    sae_id: Annotated[str | None, typer.Option(help="Which autoencoder of a release.")] = None
    layer: Annotated[int | None, typer.Option(help="Block it describes; default: as `cocomix sae` noted.")] = None
    revision: Revision = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="Teacher's arithmetic; auto: bfloat16 where the machine is fast in it. Default: float32."),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE", help="k, activation, gradient, sign, centre_by_token, sample_tokens, seed …"
        ),
    ] = None

    def labeller(self) -> "LabellerConfig":
        """The labeller's settings; refused where teacher or dictionary is missing, or a setting is unknown."""
        from pydantic import ValidationError

        from cocomix.concepts import labeller_config, labeller_config_type
        from cocomix.runtime.section import describe_validation_error
        from cocomix.runtime.yaml_text import parse_yaml
        from cocomix.training.recipe import load_recipe

        base = None if self.recipe is None else load_recipe(self.recipe).labels
        values: dict[str, Any] = {"kind": "attribution"}
        if base is not None and base.labeller is not None:
            values = base.labeller.model_dump(exclude_unset=True)
        given = {}
        for assignment in self.set or ():
            key, separator, text = assignment.partition("=")
            if not separator:
                raise CoCoMixError(f"--set {assignment} is not of the form field=value.")
            if key == "kind":
                raise CoCoMixError(f"--set {assignment}: the kind of labels is named with --kind {text}.")
            given[key] = parse_yaml(text, f"--set {assignment}")
        if self.kind not in (None, values["kind"]):  # the recipe's settings of another kind do not apply
            shared = {"k", "dtype", "teacher", "dictionary"} & labeller_config_type(self.kind).model_fields.keys()
            values = {name: values[name] for name in shared & values.keys()} | {"kind": self.kind}
        values |= given
        if self.dtype is not None:
            values["dtype"] = self.dtype
        try:
            config = labeller_config(values | self._sources(values))
        except ValidationError as error:
            found = describe_validation_error(error, labeller_config_type(values["kind"]), {"selection": "kind"})
            raise CoCoMixError(f"label settings: {found}.") from None
        if missing := config.missing():
            raise CoCoMixError(f"no {missing[0]} is given; name it with --{missing[0]}, or use a --recipe that does.")
        return config

    def _sources(self, values: dict[str, Any]) -> dict[str, Any]:
        """Teacher and dictionary, as far as they are given."""
        from cocomix.concepts import DictionaryConfig, dictionary_layer

        teacher, dictionary = dict(values.get("teacher") or {}), dict(values.get("dictionary") or {})
        if self.dictionary is not None:
            dictionary, teacher["layer"] = {"path": self.dictionary}, None  # the layer of another dictionary is another
        if self.sae_id is not None:
            dictionary["sae_id"] = self.sae_id
        if self.teacher is not None:
            teacher = {"model": self.teacher, "layer": teacher.get("layer")}
        given = {"revision": self.revision, "layer": self.layer}
        teacher |= {name: value for name, value in given.items() if value is not None}
        if teacher.get("layer") is None:  # without a dictionary any layer will do: the settings are refused anyway
            teacher["layer"] = dictionary_layer(DictionaryConfig.model_validate(dictionary)) if dictionary else 0
        found = {"teacher": teacher if "model" in teacher else None, "dictionary": dictionary}
        return {name: value for name, value in found.items() if value}


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
    used = f"{content.concepts_used:,} of {content.num_concepts:,}"
    others = [
        ("entropy of a label, nats", f"{content.entropy:.2f}"),
        ("entropy of a label given the current token, nats", f"{content.entropy_given_token:.2f}"),
        (f"concepts that label any of {content.positions:,} training positions", used),
        ("labels that are of the most frequent concept, %", f"{100 * content.top_share:.1f}"),
    ]
    return Group(found, "", table(others))
