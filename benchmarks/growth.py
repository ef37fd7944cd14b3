"""How the cost grows with the number of concepts, the sequence length and the layer of insertion."""

from collections.abc import Callable
from dataclasses import asdict, replace

from benchmarks.decoding import decoder, forward_work, random_prompt
from benchmarks.labels import label_flops, label_work
from benchmarks.ratios import Ratio, Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import (
    flops_per_token,
    forward_backward,
    plain_loss,
    random_dictionary,
    random_model,
    student_loss,
)

__all__ = ["measure"]


def measure(settings: Settings) -> Section:
    """Forward and backward passes, labelling and decoding along each axis."""
    sizes = settings.sizes
    base = replace(sizes.main, batch=1, context=sizes.growth_context, accumulation=1)
    return Section(
        "Growth",
        f"One sequence of {base.context} tokens unless the axis is the context. Steps are forward and backward passes "
        "without the optimizer, in those of NTP at the same width and context. Labels per second are in the naive "
        f"twin's, measured as its seconds ÷ ours over {min(sizes.growth_contexts)} tokens. Decoding is one cached "
        "forward pass per token, in that of GPT-2. A shape that lies on several axes is measured once. How memory "
        "grows with the number of concepts is in the section on peak memory.",
        {
            "shape": asdict(base),
            "concepts": sizes.growth_concepts,
            "contexts": sizes.growth_contexts,
            "insert_layers": sizes.growth_layers,
            "dtype": settings.dtypes[0],
        },
        [*_steps(base, settings), *_labels(base, settings), *_decoding(base, settings)],
    )


def _along_model(base: Shape, settings: Settings) -> list[tuple[str, int, Shape]]:
    """(axis, value, shape) of every number of concepts and every insert layer."""
    concepts = [("concepts", count, replace(base, concepts=count)) for count in settings.sizes.growth_concepts]
    layers = [("insert_layer", layer, replace(base, insert_layer=layer)) for layer in settings.sizes.growth_layers]
    return concepts + layers


def _steps(base: Shape, settings: Settings) -> list[Ratio]:
    device, dtype, contexts = settings.device, settings.dtypes[0], settings.sizes.growth_contexts
    points = _along_model(base, settings)
    points += [("context", context, replace(base, context=context)) for context in contexts]
    longest = max(base.context, *contexts)
    models = {replace(shape, context=longest): None for _, _, shape in points}
    students = {shape: random_model(shape.student, device) for shape in models}
    plain = random_model(replace(base, context=longest).backbone, device)

    contestants: dict[str, Callable[[], None]] = {}
    for _, _, shape in points:
        student = students[replace(shape, context=longest)]
        ours, theirs = student_loss(student, shape, device), plain_loss(plain, shape, device)
        contestants[_student(shape)] = forward_backward(student, ours, settings, dtype)
        contestants[_plain(shape)] = forward_backward(plain, theirs, settings, dtype)
    seconds = alternate(contestants, settings.rounds, device)
    return [
        _on(
            axis,
            value,
            "step, CoCoMix ÷ NTP",
            seconds[_student(shape)],
            seconds[_plain(shape)],
            flops_per_token(shape.student, shape.context) / flops_per_token(shape.backbone, shape.context),
        )
        for axis, value, shape in points
    ]


def _student(shape: Shape) -> str:
    return f"CoCoMix, {shape.concepts} concepts from block {shape.insert_layer}, {shape.context} tokens"


def _plain(shape: Shape) -> str:
    return f"NTP, {shape.context} tokens"


def _labels(base: Shape, settings: Settings) -> list[Ratio]:
    device, dtype = settings.device, settings.dtypes[0]
    ratios = []
    for concepts in settings.sizes.growth_concepts:
        shape = replace(base, concepts=concepts, context=min(settings.sizes.growth_contexts))
        ours, twin = label_work(shape, random_dictionary(shape, device), settings, dtype)
        seconds = alternate({"ours": ours, "twin": twin}, settings.rounds, device)
        our_flops, twin_flops = label_flops(shape)
        quantity = "labels per second, CoCoMix ÷ naive twin"
        ratios.append(_on("concepts", concepts, quantity, seconds["twin"], seconds["ours"], twin_flops / our_flops))
    return ratios


def _decoding(base: Shape, settings: Settings) -> list[Ratio]:
    sizes = settings.sizes
    base = replace(base, context=sizes.main.context)
    prompt = random_prompt(base, 1, sizes.prompt, settings.device)
    new_tokens = max(1, sizes.new_tokens // 4)
    points = _along_model(base, settings)
    contestants = {"GPT-2": forward_work(decoder(base.backbone, settings), prompt, new_tokens)}
    for shape in {shape: None for _, _, shape in points}:
        contestants[_student(shape)] = forward_work(decoder(shape.student, settings), prompt, new_tokens)
    seconds = alternate(contestants, settings.rounds, settings.device)
    context = sizes.prompt + new_tokens
    plain_flops = flops_per_token(base.backbone, context)
    return [
        _on(
            axis,
            value,
            "decoding, CoCoMix ÷ GPT-2",
            seconds[_student(shape)],
            seconds["GPT-2"],
            flops_per_token(shape.student, context) / plain_flops,
        )
        for axis, value, shape in points
    ]


def _on(
    axis: str, value: int, quantity: str, numerator: list[float], denominator: list[float], by_flops: float | None
) -> Ratio:
    return ratio(f"{axis} = {value:,}", quantity, numerator, denominator, by_flops=by_flops, axis=axis, x=value)
