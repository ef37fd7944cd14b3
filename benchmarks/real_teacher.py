"""Labels of a pretrained teacher in each number format, against the naive twin in float32.

    python -m benchmarks.real_teacher TEACHER DICTIONARY DATA [--blocks N] [--rounds N] [--output FILE]

TEACHER is a folder or GGUF file of a causal LM, DICTIONARY a folder of `cocomix sae` on it (layer-normed TopK), DATA a
folder of `cocomix prepare` in its tokens. Prints tokens per second as ratios of one run, and how far the labels of the
narrow formats are those of float32.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.naive import naive_labels
from benchmarks.ratios import ratio
from benchmarks.timing import alternate
from cocomix.concepts import (
    AttributionLabeller,
    ConceptTeacher,
    DictionaryConfig,
    dictionary_layer,
    load_teacher,
    measure_agreement,
)
from cocomix.data import Tokens
from cocomix.runtime.device import default_device

_FORMATS = ("float32", "float16", "bfloat16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("dictionary")
    parser.add_argument("data")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    device, source = default_device(), DictionaryConfig(path=options.dictionary)
    layer, dictionary = dictionary_layer(source), source.load()
    model = load_teacher(options.teacher, device=device)
    trainable = copy.deepcopy(model).train().requires_grad_(True)
    labeller = AttributionLabeller(ConceptTeacher(model, dictionary, layer))
    rows = Tokens.open(options.data).split("train").rows(0, options.blocks)
    tokens = torch.from_numpy(rows.astype("int64")).to(device)
    formats = [name for name in _FORMATS if device.type != "cpu" or name != "float16"]  # a CPU emulates float16

    def ours(name: str) -> Callable[[], Tensor]:
        return lambda: labeller.with_dtype(name).label(tokens, k=4).ids

    contestants = {name: ours(name) for name in formats}
    contestants["twin"] = lambda: naive_labels(trainable, labeller.teacher.dictionary, layer, tokens)
    seconds = alternate(contestants, options.rounds, device.type)
    speeds = {name: [tokens.numel() / second for second in each] for name, each in seconds.items()}
    case = f"{options.blocks} × {tokens.shape[1]} tokens"
    found = [
        ratio(f"{name}, {case}", "CoCoMix ÷ naive twin in float32", speeds[name], speeds["twin"], "tokens/s")
        for name in formats
    ]
    agreements = {name: measure_agreement(labeller.with_dtype(name), labeller, tokens, 4) for name in _FORMATS[1:]}
    report = {
        "command": " ".join(["python -m benchmarks.real_teacher", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(device.type),
        "teacher": {"layer": layer, "concepts": dictionary.n_concepts, "active": dictionary.k},
        "speed": [asdict(one) for one in found],
        "labels_of_float32": {name: one._asdict() for name, one in agreements.items()},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
