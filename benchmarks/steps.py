"""Training steps of CoCoMix, of both NTP baselines and of the naive twin."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import nn

from benchmarks.machine import peak_flops
from benchmarks.naive import NaiveStudent, naive_labels
from benchmarks.ratios import Ratio, Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import (
    Loss,
    adamw,
    flops_per_token,
    plain_loss,
    random_batch,
    random_dictionary,
    random_model,
    student_loss,
    training_step,
    twin_loss,
)
from cocomix.model.accounting import matched_config

__all__ = ["measure", "measure_compiled"]

_TARGETS = {
    ("69M", "float32"): {"NTP": "≤ 1.75", "matched NTP": "≤ 1.35", "twin": "≥ 4.5"},
    ("69M", "bfloat16"): {"NTP": "≤ 1.85"},
}


def measure(settings: Settings) -> Section:
    """Forward, backward and AdamW of every shape in every dtype."""
    ratios = [
        found
        for shape in settings.sizes.steps
        for dtype in settings.dtypes
        for found in _measure_shape(shape, dtype, settings)
    ]
    return Section(
        "Training steps",
        "Seconds of one optimizer step (forward, backward, AdamW) with stored labels, in steps of next-token "
        "prediction (NTP) at the same width and of the NTP baseline with as many active parameters. The naive twin is "
        "the method as its formulas are written; *with its labels* also computes them in the step, as the released "
        "code does.",
        {"shapes": [asdict(shape) for shape in settings.sizes.steps], "dtypes": settings.dtypes},
        ratios,
        settings.notes,
    )


def measure_compiled(settings: Settings) -> Section:
    """The same steps of CoCoMix and NTP by `torch.compile`."""
    shapes, dtype = settings.sizes.steps, settings.dtypes[0]
    return Section(
        "Compiled training steps",
        "Seconds of one optimizer step whose model went through `torch.compile`, in steps of the model as it is, and "
        "in compiled steps of NTP.",
        {"shapes": [asdict(shape) for shape in shapes], "dtype": dtype},
        [found for shape in shapes for found in _measure_compiled(shape, dtype, settings)],
        settings.notes,
    )


def _measure_compiled(shape: Shape, dtype: str, settings: Settings) -> list[Ratio]:
    device, contestants = settings.device, {}
    configs = {"CoCoMix": shape.student, "NTP": shape.backbone}
    for name, config in configs.items():
        model = random_model(config, device)
        compiled = torch.compile(model, backend="eager" if settings.fast else "inductor")
        loss = student_loss if name == "CoCoMix" else plain_loss
        for label, called in {name: model, f"compiled {name}": compiled}.items():
            step = training_step(model, loss(called, shape, device), settings, dtype, adamw(model), shape.accumulation)
            contestants[label] = step
    seconds = alternate(contestants, settings.rounds, device)
    case = f"{shape.name}, {dtype}, {shape.accumulation * shape.batch} × {shape.context} tokens"
    ratios = [ratio(case, f"compiled {name} ÷ {name}", seconds[f"compiled {name}"], seconds[name]) for name in configs]
    ratios.append(ratio(case, "compiled CoCoMix ÷ compiled NTP", seconds["compiled CoCoMix"], seconds["compiled NTP"]))
    peak, tokens = peak_flops(device), shape.accumulation * shape.batch * shape.context
    if peak is not None and dtype == "bfloat16":
        for name, config in configs.items():
            flops = 3.0 * flops_per_token(config, shape.context) * tokens
            ratios.append(_utilisation(case, f"compiled {name}", flops, seconds[f"compiled {name}"], peak))
    return ratios


def _measure_shape(shape: Shape, dtype: str, settings: Settings) -> list[Ratio]:
    device = settings.device
    student = random_model(shape.student, device)
    twin = NaiveStudent(student)
    teacher, dictionary = random_model(shape.teacher_config, device), random_dictionary(shape, device)
    tokens, _ = random_batch(shape, device)

    def label() -> None:
        with settings.autocast(dtype):
            for _ in range(shape.accumulation):
                naive_labels(teacher, dictionary, shape.teacher.layer, tokens)

    def step(model: nn.Module, loss: Loss) -> Callable[[], None]:
        return training_step(model, loss, settings, dtype, adamw(model), shape.accumulation)

    contestants = {
        "CoCoMix": step(student, student_loss(student, shape, device)),
        "twin": step(twin, twin_loss(twin, shape, device)),
        "labels": label,
    }
    configs = {"NTP": shape.backbone, "matched NTP": matched_config(shape.student)}
    for name, config in configs.items():
        model = random_model(config, device)
        contestants[name] = step(model, plain_loss(model, shape, device))
    seconds = alternate(contestants, settings.rounds, device)

    flops = {name: flops_per_token(config, shape.context) for name, config in configs.items()}
    flops["CoCoMix"] = flops_per_token(shape.student, shape.context)
    targets = _TARGETS.get((shape.name, dtype), {}) if device == "cpu" else {}
    case = f"{shape.name}, {dtype}, {shape.accumulation * shape.batch} × {shape.context} tokens"
    ntp = seconds["NTP"]
    with_labels = [step + label for step, label in zip(seconds["twin"], seconds["labels"], strict=True)]
    ratios = [
        ratio(
            case,
            f"CoCoMix ÷ {name}",
            seconds["CoCoMix"],
            seconds[name],
            by_flops=flops["CoCoMix"] / flops[name],
            target=targets.get(name, ""),
        )
        for name in configs
    ]
    ratios.append(ratio(case, "naive twin ÷ NTP", seconds["twin"], ntp))
    ratios.append(ratio(case, "naive twin with its labels ÷ NTP", with_labels, ntp, target=targets.get("twin", "")))
    peak = peak_flops(device)
    if peak is not None and dtype == "bfloat16":
        tokens_per_step = shape.accumulation * tokens.numel()
        for name in ("NTP", "CoCoMix"):
            ratios.append(_utilisation(case, name, 3.0 * flops[name] * tokens_per_step, seconds[name], peak))
    return ratios


def _utilisation(case: str, name: str, flops: float, seconds: Sequence[float], peak: float) -> Ratio:
    """Model FLOPs utilisation: FLOPs of the step by formula, per second, ÷ the accelerator's dense peak."""
    tera = 1e12
    achieved = [flops / second / tera for second in seconds]
    return ratio(case, f"FLOPs utilisation of {name}", achieved, [peak / tera] * len(achieved), "TFLOP/s")
