"""Your texts, a pretrained teacher of another tokenizer, three students and a report.

    python examples/own_corpus.py my_texts/ --teacher SmolLM2-135M.gguf --layer 12 --output out/mine

A teacher's vocabulary of 49,000 entries would be most of a small student, so the students get a tokenizer of their own.
The teacher may be a Hub name, a folder, a run or a GGUF file. Give a stopped command again and it goes on.
"""

import argparse
from pathlib import Path

import torch

from cocomix.concepts import ContextualConfig, DictionaryConfig, FitSettings, TeacherConfig
from cocomix.data import PrepareSettings, prepare
from cocomix.evaluation import Run, compare, evaluate_run, write_report
from cocomix.labelling import fit_on_data, label_and_distill
from cocomix.training import train
from cocomix.training.recipe import RunConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts"), parser.add_argument("--teacher", required=True)
    parser.add_argument("--layer", type=int, required=True, help="block of the teacher, from 0, that concepts describe")
    parser.add_argument("--dictionary", help="of that layer, e.g. recipes/smollm2_dictionary; default: fit one")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=500_000, help="that each student reads")
    parser.add_argument("--vocabulary", type=int, default=4096, help="entries of the students' tokenizer")
    parser.add_argument("--concepts", type=int, default=1024, help="of a dictionary that is fitted")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=96, help="d_model of the students")
    asked = parser.parse_args()
    folder, teacher = asked.output, TeacherConfig(model=asked.teacher, layer=asked.layer)

    # 1. Tokens. A tenth of the documents validates.
    text = PrepareSettings(
        sources=(asked.texts,), vocab_size=asked.vocabulary, block_size=asked.block_size, validation_fraction=0.1
    )
    data = prepare(text, folder / "data").path

    # 2. A dictionary. The teacher reads the same text in its own tokens.
    dictionary = asked.dictionary or str(folder / "dictionary")
    if asked.dictionary is None:
        settings = FitSettings(num_concepts=asked.concepts, k=16, tokens=asked.tokens)
        fit_on_data(data, teacher, folder / "dictionary", settings)

    # 3. Labels: four concepts for each of the students' tokens; and the teacher's next-token probabilities.
    kind = ContextualConfig(teacher=teacher, dictionary=DictionaryConfig(path=dictionary))
    labels, _ = label_and_distill(data, kind, folder / "labels", folder / "probabilities")

    # 4. Students. `baseline: flops` widens the plain decoders to as many FLOPs a token as the one with concepts has.
    backbone = {"model_type": "gpt2", "n_embd": asked.width, "n_layer": 4, "n_head": 4}
    arms = {
        "ntp": {"objective": "ntp", "baseline": "flops"},
        "distilled": {
            "objective": "ntp", "baseline": "flops", "distillation": {"targets": str(folder / "probabilities")}
        },
        "cocomix": {"objective": "cocomix", "distillation": {"targets": str(folder / "probabilities")}},
    }  # fmt: skip
    runs = []
    for name, arm in arms.items():
        recipe = {
            "name": name, "data": str(data), "labels": str(folder / "labels"), "tokens": asked.tokens, **arm,
            "model": {
                "backbone": backbone, "insert_layer": 2, "num_concepts": labels.num_concepts,
                "mixing": "add", "concept_weights": "softmax", "concept_loss_weight": 1.0,  # as recipes/best_small.yaml
            },
            "training": {"optim": "muon", "learning_rate": 2e-2, "per_device_train_batch_size": 8, "eval_steps": 100},
        }  # fmt: skip
        runs.append(Run.open(train(RunConfig.model_validate(recipe), folder / "runs" / name)))

    # 5. Measure and compare: `report/report.html` begins with what was found.
    for run in runs:
        evaluate_run(run, device=torch.device("cpu"))
    comparison = compare(runs)
    if not (folder / "report").exists():
        write_report(comparison, folder / "report")
    for row in comparison.arms.itertuples():
        print(f"{row.arm:>10}: {row.loss:.3f} nats per token of held-out text")


if __name__ == "__main__":
    main()
