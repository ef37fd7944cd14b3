"""The verb `import`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cocomix.cli.options import Output
from cocomix.cli.printing import Printed


def import_other(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint folder of the released CoCoMix code (step_… or last), or an OpenAI autoencoder (.pt).",
        ),
    ],
    output: Output,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer to put beside the model: folder or Hub name.")
    ] = None,
    insert_layer: Annotated[int | None, typer.Option(help="Where its config.yaml does not say it.")] = None,
    concept_topk: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    to_released: Annotated[
        bool, typer.Option("--to-released", help="The other way: a run of ours for the released code.")
    ] = False,
) -> Printed:
    """Read checkpoints and autoencoders of other code.

    [dim]Example: cocomix import logs/cocomix_69m/last -o imported --tokenizer openai-community/gpt2[/dim]
    """
    from cocomix.interop import ConceptSettings, convert_autoencoder, export_to_released, import_released

    facts: dict[str, Any]
    if source.suffix == ".pt":
        made = convert_autoencoder(source, output)
        facts = {"kind": "dictionary", "num_concepts": made.n_concepts, "d_model": made.d_model}
        note = f"{output}: {made.n_concepts:,} concepts of states {made.d_model} wide, as SAELens has it"
        return Printed({**facts, "k": made.k, "normalize": made.normalize}, note=note)
    if to_released:
        model = export_to_released(source, output)
    else:
        model = import_released(source, output, ConceptSettings(insert_layer, concept_topk), tokenizer)
    config, parameters = model.config, model.num_parameters()
    facts = {"kind": "model", "parameters": parameters, "insert_layer": config.insert_layer}
    facts |= {"num_concepts": config.num_concepts, "concept_topk": config.concept_topk}
    concepts = f"{config.num_concepts:,} concepts before block {config.insert_layer}"
    return Printed(facts, note=f"{output}: {parameters:,} parameters, {concepts}")
