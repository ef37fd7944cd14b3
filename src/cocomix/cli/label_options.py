"""Options that say how labels are made, laid over what a recipe says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cocomix.cli.options import Revision
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.concepts import LabellerConfig


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
        if self.revision is not None:
            teacher["revision"] = self.revision
        if self.layer is not None:
            teacher["layer"] = self.layer
        if teacher.get("layer") is None:  # without a dictionary any layer will do: the settings are refused anyway
            teacher["layer"] = dictionary_layer(DictionaryConfig.model_validate(dictionary)) if dictionary else 0
        return {
            **({"teacher": teacher} if "model" in teacher else {}),
            **({"dictionary": dictionary} if dictionary else {}),
        }
