"""Labelling: our teacher against the naive twin's full backward pass and dense products."""

import copy
from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor

from benchmarks.naive import naive_labels
from benchmarks.ratios import Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import LABELS_PER_POSITION, flops_per_token, random_batch, random_dictionary, random_model
from cocomix.concepts import AttributionLabeller, ConceptDictionary, ConceptTeacher, label_agreement

__all__ = ["label_flops", "label_work", "measure"]

_TARGETS = {"float32": "≥ 1.7", "bfloat16": "≥ 3"}
_ON_GPU = ("float32", "float16", "bfloat16")


def measure(settings: Settings) -> Section:
    """Tokens per second of both, each dtype of ours against the twin in float32."""
    shape, dtypes = settings.sizes.short, settings.dtypes if settings.device == "cpu" else _ON_GPU
    contestants: dict[str, Callable[[], Tensor]] = {}
    for dtype in dtypes:
        contestants[dtype], twin = label_work(shape, random_dictionary(shape, settings.device), settings, dtype)
        if dtype == "float32":
            contestants["twin"] = twin
    seconds = alternate(contestants, settings.rounds, settings.device)

    tokens = shape.batch * shape.context
    per_second = {name: [tokens / second for second in each] for name, each in seconds.items()}
    ours, twins = label_flops(shape)
    case = f"{shape.batch} × {shape.context} tokens"
    ratios = [
        ratio(
            f"{dtype}, {case}",
            "CoCoMix ÷ naive twin",
            per_second[dtype],
            per_second["twin"],
            "tokens/s",
            by_flops=twins / ours,
            target=_TARGETS.get(dtype, "") if shape.name == "69M" else "",
        )
        for dtype in dtypes
    ]
    for dtype in dtypes[1:]:
        shares = [label_agreement(contestants[dtype](), contestants["float32"]())]
        ratios.append(ratio(case, f"positions with the same labels in {dtype}", shares, [1.0], ""))
    return Section(
        "Labelling",
        "Tokens labelled per second, in those of the naive twin, which runs the whole teacher forwards and backwards "
        f"and multiplies dense. Larger is better. Random weights, {shape.concepts:,} concepts.",
        {"shape": asdict(shape), "dtypes": dtypes, "labels_per_position": LABELS_PER_POSITION},
        ratios,
        settings.notes,
    )


def label_work(
    shape: Shape, dictionary: ConceptDictionary, settings: Settings, dtype: str
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Our labelling of one batch and the naive twin's, with equal weights; both return ids."""
    model = random_model(shape.teacher_config, settings.device)
    tokens, _ = random_batch(shape, settings.device)
    teacher = ConceptTeacher(copy.deepcopy(model), dictionary, shape.teacher.layer)
    labeller = AttributionLabeller(teacher, dtype=dtype)

    def twin() -> Tensor:
        with settings.autocast(dtype):
            return naive_labels(model, dictionary, shape.teacher.layer, tokens)

    return lambda: labeller.label(tokens, k=LABELS_PER_POSITION).ids, twin


def label_flops(shape: Shape) -> tuple[float, float]:
    """FLOPs per token of our labelling and of the naive twin's, by formula.

    Both run the teacher and the dictionary's encoder forwards. We go back to the hooked block with respect to
    activations only, and read the decoder's active rows; the twin goes back through everything with respect to weights
    too, and multiplies with the whole decoder.
    """
    width, concepts = shape.teacher.width, shape.concepts
    forward = flops_per_token(shape.teacher_config, shape.context)
    head = 2.0 * shape.vocabulary * width
    above = (forward - head) * (shape.teacher.blocks - 1 - shape.teacher.layer) / shape.teacher.blocks
    encoder = 2.0 * width * concepts
    ours = forward + above + head + encoder + 2.0 * width * shape.teacher.active
    return ours, 3.0 * forward + 2.0 * encoder
