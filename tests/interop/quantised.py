"""Run by itself with torchao on the path: int8 weights against the same weights in float32, as one JSON line.

python -m tests.interop.quantised MODEL FAMILY
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["TORCHAO"]

TORCHAO = Path(sys.prefix) / "torchao"
"""Where `.ci/install` puts it."""


def main(folder: str, family: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from tests.model.factories import student

    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), device_map="cpu"
    )
    changed = student(family)
    quantize_(changed, Int8WeightOnlyConfig())
    found = {"from_pretrained": compared(loaded, family), "quantize_": compared(changed, family)}
    sys.stdout.write(json.dumps(found) + "\n")


def compared(model: Any, family: str) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    from tests.model.factories import concepts, student, tokens

    exact = student(family)
    int8 = [name for name, weight in model.named_parameters() if "Int8" in type(weight).__name__]
    with torch.no_grad():
        for name in int8:
            module, _, weight = name.rpartition(".")  # a new one each: a head tied to the embedding no longer is
            setattr(exact.get_submodule(module), weight, torch.nn.Parameter(model.get_parameter(name).dequantize()))
    ids, labels = tokens(), concepts()
    model.eval()
    with torch.no_grad():
        held, same, plain = (
            each(input_ids=ids, labels=ids, concept_labels=labels) for each in (model, exact, student(family))
        )
        chunked = model(input_ids=ids, labels=ids, concept_labels=labels, output_logits=False)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["predictor.head", "o_proj"]))
    adapted.train()
    adapted(input_ids=ids, labels=ids, concept_labels=labels, output_logits=False).loss.backward()
    return {
        "int8": int8,
        "difference": (held.logits - same.logits).abs().max().item(),
        "loss_difference": max(abs(each.loss.item() - same.loss.item()) for each in (held, chunked)),
        "loss": held.loss.item(),
        "plain_loss": plain.loss.item(),
        "adapters_without_gradient": [
            name for name, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is None
        ],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
