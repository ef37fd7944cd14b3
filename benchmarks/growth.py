"""How the cost grows with the number of concepts, the sequence length and the layer of insertion."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

from benchmarks.decoding import decoder, forward_work, random_prompt
from benchmarks.labels import label_flops, label_work
from benchmarks.naive import NaiveStudent
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
    twin_loss,
)

__all__ = ["measure"]


def measure(settings: Settings) -> Section:
    """Forward and backward passes, labelling and decoding along each axis."""
    sizes = settings.sizes
    base = replace(sizes.main, batch=1, context=sizes.growth_context, accumulation=1)
    ratios = [*_steps_at_one_context(base, settings), *_steps_over_contexts(base, settings)]
    ratios += _labels(base, settings)
    ratios += _decoding(base, settings)
    return Section(
        "Growth",
        f"One sequence of {base.context} tokens unless the axis is the context. Steps are forward and backward passes "
        "without the optimizer, in those of NTP at the same width and context. Labels per second are in the naive "
        "twin's, measured as its seconds ÷ ours. Decoding is one cached forward pass per token, in that of GPT-2. How "
        "memory grows with the number of concepts is in the section on peak memory.",
        {
            "shape": asdict(base),
            "concepts": sizes.growth_concepts,
            "contexts": sizes.growth_contexts,
            "insert_layers": sizes.growth_layers,
            "dtype": settings.dtypes[0],
        },
        ratios,
    )


def _variants(base: Shape, settings: Settings) -> Iterable[tuple[str, int, Shape]]:
    """(axis, value, shape) of every number of concepts and every insert layer."""
    for concepts in settings.sizes.growth_concepts:
        yield "concepts", concepts, replace(base, concepts=concepts)
    for layer in settings.sizes.growth_layers:
        yield "insert_layer", layer, replace(base, insert_layer=layer)


def _steps_at_one_context(base: Shape, settings: Settings) -> list[Ratio]:
    device, dtype = settings.device, settings.dtypes[0]
    variants = list(_variants(base, settings))
    plain = random_model(base.backbone, device)
    contestants = {"NTP": forward_backward(plain, plain_loss(plain, base, device), settings, dtype)}
    for axis, value, shape in variants:
        student = random_model(shape.student, device)
        ours = student_loss(student, shape, device)
        contestants[f"CoCoMix {axis} {value}"] = forward_backward(student, ours, settings, dtype)
        if axis == "concepts":
            twin = NaiveStudent(student)
            naive = twin_loss(twin, shape, device)
            contestants[f"naive twin {axis} {value}"] = forward_backward(twin, naive, settings, dtype)
    seconds = alternate(contestants, settings.rounds, device)
    plain_flops = flops_per_token(base.backbone, base.context)
    ratios = []
    for axis, value, shape in variants:
        flops = flops_per_token(shape.student, shape.context) / plain_flops
        for name, by_flops in (("CoCoMix", flops), ("naive twin", None)):
            if f"{name} {axis} {value}" in seconds:
                measured = seconds[f"{name} {axis} {value}"]
                ratios.append(_on(axis, value, f"step, {name} ÷ NTP", measured, seconds["NTP"], by_flops))
    return ratios


def _steps_over_contexts(base: Shape, settings: Settings) -> list[Ratio]:
    device, dtype = settings.device, settings.dtypes[0]
    longest = replace(base, context=max(settings.sizes.growth_contexts))
    plain, student = random_model(longest.backbone, device), random_model(longest.student, device)
    contestants: dict[str, Callable[[], None]] = {}
    for context in settings.sizes.growth_contexts:
        shape = replace(base, context=context)
        contestants[f"NTP {context}"] = forward_backward(plain, plain_loss(plain, shape, device), settings, dtype)
        contestants[f"CoCoMix {context}"] = forward_backward(
            student, student_loss(student, shape, device), settings, dtype
        )
    seconds = alternate(contestants, settings.rounds, device)
    return [
        _on(
            "context",
            context,
            "step, CoCoMix ÷ NTP",
            seconds[f"CoCoMix {context}"],
            seconds[f"NTP {context}"],
            flops_per_token(longest.student, context) / flops_per_token(longest.backbone, context),
        )
        for context in settings.sizes.growth_contexts
    ]


def _labels(base: Shape, settings: Settings) -> list[Ratio]:
    device, dtype = settings.device, settings.dtypes[0]
    ratios = []
    for concepts in settings.sizes.growth_concepts:
        shape = replace(base, concepts=concepts)
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
    variants = list(_variants(base, settings))
    contestants = {"GPT-2": forward_work(decoder(base.backbone, settings), prompt, new_tokens)}
    for axis, value, shape in variants:
        contestants[f"{axis} {value}"] = forward_work(decoder(shape.student, settings), prompt, new_tokens)
    seconds = alternate(contestants, settings.rounds, settings.device)
    context = sizes.prompt + new_tokens
    plain_flops = flops_per_token(base.backbone, context)
    return [
        _on(
            axis,
            value,
            "decoding, CoCoMix ÷ GPT-2",
            seconds[f"{axis} {value}"],
            seconds["GPT-2"],
            flops_per_token(shape.student, context) / plain_flops,
        )
        for axis, value, shape in variants
    ]


def _on(
    axis: str, value: int, quantity: str, numerator: list[float], denominator: list[float], by_flops: float | None
) -> Ratio:
    return ratio(f"{axis} = {value:,}", quantity, numerator, denominator, by_flops=by_flops, axis=axis, x=value)
