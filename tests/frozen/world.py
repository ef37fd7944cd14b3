"""Runs the frozen cases on cocomix. The only module here that calls it: an API that changes is followed here.

Everything is made lazily, once, in one folder; arrays and plain values come back.
"""

import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cocomix import labelling
from cocomix.concepts import (
    ActivationLabeller,
    AttributionLabeller,
    ConceptDictionary,
    ConceptTeacher,
    RandomLabeller,
    labeller_config,
    pad_right,
)
from cocomix.concepts.sources import DictionaryConfig, TeacherConfig
from cocomix.data import PrepareSettings, Tokens, prepare
from cocomix.evaluation import Run
from cocomix.interop import from_reference_state_dict
from cocomix.interpret import generate, parse_steer
from cocomix.labelling import TeacherProbabilities, distill_data, label_data
from cocomix.training import train
from cocomix.training.recipe import RunConfig
from tests.frozen import cases, material
from tests.golden import GOLDEN, read_golden

Array = npt.NDArray[Any]


LABELLERS = {"attribution": AttributionLabeller, "activation": ActivationLabeller, "random": RandomLabeller}


class Labels(NamedTuple):
    """Concepts by position: ids int32 and scores float32, both [rows, positions, k]; −100 = no label."""

    ids: Array
    scores: Array


class Text(NamedTuple):
    """A greedy continuation.

    Attributes:
        text: as `cocomix.interpret.generate` writes it, without its prompt.
        tokens: as the model's own `generate` continues the prompt.
        margin: the smallest distance between the likeliest and the second logit on its way; where it is tiny, another
            CPU may choose the other token.
    """

    text: str
    tokens: list[int]
    margin: float


class World:
    """Corpora, teachers, labels and runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}

    # ---- corpora ---------------------------------------------------------------------------------------------------

    def blocks(self, corpus: str) -> dict[str, Array]:
        """Token blocks of a corpus by split, uint16 [blocks, block_size]."""
        data = Tokens.open(self.place(corpus))
        return {
            split: np.stack([row["input_ids"].numpy() for row in data.split(split)]).astype(np.uint16)
            for split in ("train", "validation")
        }

    @cached_property
    def tokenizer(self) -> Path:
        """An existing tokenizer, not made by cocomix."""
        return material.write_tokenizer(self.folder / "tokenizer")

    def _corpus(self, name: str, output: Path) -> None:
        """Prepare a corpus: its source files, then its settings."""
        source = self.folder / f"{name}-source"
        source.mkdir()
        settings: dict[str, Any] = {"block_size": cases.BLOCK, "tokens_per_file": 150 * cases.BLOCK}
        if name == "training":  # a folder of text files, a trained BPE
            training = material.write_texts(source / "train", material.documents(250, seed=1))
            held_out = material.write_texts(source / "held_out", material.documents(12, seed=2))
            settings |= {"vocab_size": material.VOCAB}
        elif name == "second":  # the training corpus' tokenizer, for a mixture
            training = material.write_jsonl(source / "train.jsonl", material.documents(40, seed=3, words=90))
            held_out = material.write_texts(source / "held_out", material.documents(4, seed=4))
            settings |= {"tokenizer": str(self.place("training") / "tokenizer")}
        elif name == "jsonl":  # another field, compressed validation, an existing tokenizer
            training = material.write_jsonl(source / "train.jsonl", material.documents(30, seed=5), field="body")
            held_out = material.write_jsonl(source / "held_out.jsonl.gz", material.documents(5, seed=6), field="body")
            settings |= {"tokenizer": str(self.tokenizer), "text_column": "body"}
        elif name == "unicode":  # many scripts, white space, names of special tokens, bytes that are no UTF-8
            mixed = [t for pair in zip(material.documents(12, seed=7), material.UNUSUAL * 2, strict=True) for t in pair]
            training = material.write_texts(source / "train", mixed, ".md")
            (training / "9999.md").write_bytes(b"caf\xe9 and \xff\xfe, then text again; an empty file follows")
            (training / "99999.md").write_bytes(b"")
            held_out = material.write_texts(source / "held_out", list(material.UNUSUAL))
            settings |= {"vocab_size": 420}
        elif name == "long":  # one text that is read and encoded in pieces; the tokenizer learns from its beginning
            passage = "\n\n".join([*material.documents(40, seed=8), *material.UNUSUAL])
            training = material.write_texts(source / "train", [passage * (2_300_000 // len(passage))])
            held_out = material.write_texts(source / "held_out", [passage])
            settings |= {"vocab_size": 300, "tokenizer_training_bytes": 50_000, "max_bytes": 2_100_000}
        elif name == "begin":  # blocks that begin with the begin-of-text token
            training = material.write_texts(source / "train", [*material.documents(25, seed=9), *material.UNUSUAL])
            held_out = material.write_texts(source / "held_out", material.documents(4, seed=10))
            settings |= {"tokenizer": str(self.tokenizer), "prepend_bos": True}
        elif name == "parquet":
            training = material.write_parquet(source / "train.parquet", material.documents(25, seed=11))
            held_out = material.write_parquet(source / "held_out.parquet", material.documents(4, seed=12))
            settings |= {"vocab_size": 330}
        else:  # tokens: files of another program, uint16 with 1 = end of document
            training, held_out = source / "train.bin", source / "held_out.bin"
            for path, seed, length in ((training, 13, 3000), (held_out, 14, 500)):
                path.write_bytes(material.token_rows(1, length, 300, seed).numpy().astype("<u2").tobytes())
            settings |= {"tokenizer": str(self.tokenizer)}
        prepare(PrepareSettings(sources=(str(training),), validation_sources=(str(held_out),), **settings), output)

    # ---- labels ----------------------------------------------------------------------------------------------------

    @cache  # noqa: B019 - a world lives as long as its session
    def teacher(self, kind: str) -> ConceptTeacher:
        """A random decoder with a random dictionary, both in memory."""
        options = dict(cases.TEACHERS[kind])
        if "threshold" in options:
            options["threshold"] = torch.tensor(options["threshold"])
        layer = options.pop("layer")
        dictionary = ConceptDictionary(**material.random_dictionary(seed=20 + layer), **options)
        model = material.make_model(kind, vocab_size=61, seed=30 + layer)
        return ConceptTeacher(model, dictionary, layer, bos_token_id=0)

    def labels(self, kind: str, setting: str) -> Labels:
        """Labels of six rows: two begin with the begin-of-text token, two are padded (left and right)."""
        tokens = material.token_rows(6, 24, 61, seed=40)
        mask = torch.ones_like(tokens)
        tokens[:2, 0] = 0
        mask[4, :5], mask[5, -5:] = 0, 0
        settings = dict(cases.LABEL_SETTINGS[setting])
        labeller = LABELLERS[settings.pop("selection", "attribution")](self.teacher(kind), **settings)
        found = labeller.label(tokens, mask, k=4)
        return Labels(found.ids.numpy().astype(np.int32), found.scores.numpy())

    def ragged_labels(self, kind: str) -> Labels:
        """Labels of sequences of different lengths, one after another: [1, positions, k]."""
        rows = [material.token_rows(1, length, 61, seed=50 + length)[0] for length in (3, 17, 1, 9, 24)]
        found = AttributionLabeller(self.teacher(kind)).label(*pad_right(rows), k=4)
        ids, scores = (torch.cat([part[row, : len(rows[row])] for row in range(len(rows))]) for part in found)
        return Labels(ids[None].numpy().astype(np.int32), scores[None].numpy())

    def stored_labels(self, name: str) -> dict[str, Labels]:
        """Labels of the training corpus as they are read back, by split."""
        store = labelling.Labels.open(self.place("labels" if name == "attribution" else f"labels_{name}"))
        found = {}
        for split in ("train", "validation"):
            blocks = store.split(split)
            ids = [blocks[index]["concept_labels"].numpy() for index in range(len(blocks))]
            scores = [blocks.scores(index).numpy() for index in range(len(blocks))]
            found[split] = Labels(np.stack(ids).astype(np.int32), np.stack(scores))
        return found

    def probabilities(self) -> Labels:
        """The stored next-token probabilities of the validation split: token ids and their log-probabilities."""
        blocks = TeacherProbabilities.open(self.place("probabilities")).split("validation")
        rows = [blocks[index] for index in range(len(blocks))]
        ids = np.stack([row["teacher_ids"].numpy() for row in rows]).astype(np.int32)
        return Labels(ids, np.stack([row["teacher_log_probs"].float().numpy() for row in rows]))

    # ---- training --------------------------------------------------------------------------------------------------

    def place(self, name: str) -> Path:
        """The folder that a recipe calls `@name`, made when it is first asked for."""
        if name not in self._made:
            output = self.folder / name
            self._make(name, output)
            self._made[name] = output
        return self._made[name]

    def _make(self, name: str, output: Path) -> None:
        if name in cases.CORPORA:
            self._corpus(name, output)
        elif name == "teacher":
            material.make_model("gpt2", vocab_size=material.VOCAB, seed=60).save_pretrained(output)
            Tokens.open(self.place("training")).tokenizer().save_pretrained(output)
        elif name == "dictionary":
            dictionary = ConceptDictionary(**material.fitting_dictionary(seed=61), k=16, normalize="layer_norm")
            dictionary.save(output)
        elif name in ("labels", "labels_random"):
            settings = cases.STORED_LABELS["random" if name == "labels_random" else "attribution"]
            dictionary = DictionaryConfig(path=str(self.place("dictionary")))
            settings = {"kind": settings.get("selection", "attribution"), **settings}
            settings.pop("selection", None)
            config = labeller_config({**settings, "teacher": self._teacher_config, "dictionary": dictionary})
            label_data(self.place("training"), config, output, scores="float32")
        else:
            assert name == "probabilities", name
            distill_data(self.place("training"), self._teacher_config, output, top_k=8)

    @property
    def _teacher_config(self) -> TeacherConfig:
        return TeacherConfig(model=str(self.place("teacher")), layer=1)

    @cache  # noqa: B019 - see above
    def train(self, arm: str) -> Path:
        """Train an arm; its run folder."""
        recipe = RunConfig.model_validate(self._resolved(merged(cases.BASE, {**cases.ARMS, **cases.TEXT_ARMS}[arm])))
        return train(recipe, self.folder / "runs" / arm)

    def curve(self, arm: str) -> dict[str, list[float]]:
        """What a run logged, by name; one value for each step, or for each evaluation."""
        lines = (self.train(arm) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        curves = {name: [row[name] for row in rows if name in row] for name in (*cases.CURVES, *cases.EVALUATIONS)}
        return {name: values for name, values in curves.items() if values}

    def _resolved(self, value: Any) -> Any:
        """A recipe's values with folders in the place of `@name`."""
        if isinstance(value, Mapping):
            return {key: self._resolved(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._resolved(part) for part in value]
        return str(self.place(value[1:])) if isinstance(value, str) and value.startswith("@") else value

    # ---- texts -----------------------------------------------------------------------------------------------------

    def greedy(self, arm: str, prompts: list[str], steer: list[str] = []) -> list[Text]:  # noqa: B006 - not changed
        """Greedy continuations of prompts, each on its own, with the run's model and tokenizer."""
        run = Run.open(self.train(arm))
        model, tokenizer = run.model().eval(), run.tokenizer()
        edits = [parse_steer(text) for text in steer]
        found = []
        for prompt in prompts:
            (text,) = generate(model, tokenizer, prompt, max_new_tokens=cases.NEW_TOKENS, edits=edits, temperature=0.0)
            prompt_ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            steered = {"concept_edits": tuple(edits)} if edits else {}
            with torch.no_grad():
                tokens = model.generate(prompt_ids, max_new_tokens=cases.NEW_TOKENS, do_sample=False, **steered)
                logits = model(tokens, **steered).logits[0, prompt_ids.shape[1] - 1 : -1]
            best = logits.topk(2, dim=-1).values
            new = tokens[0, prompt_ids.shape[1] :].tolist()
            found.append(Text(text, new, float((best[:, 0] - best[:, 1]).min())))
        return found

    # ---- the released code's golden files ----------------------------------------------------------------------------

    def golden_labels(self, name: str) -> tuple[Labels, Array, Array]:
        """Our labels and attribution on a golden file's teacher, and the file's own attribution."""
        from transformers import GPT2Config, GPT2LMHeadModel

        from tests.concepts.test_parity import restore_teacher

        meta, tensors = read_golden(GOLDEN / f"{name}.safetensors")
        shape = {key: meta[key] for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        model = GPT2LMHeadModel(GPT2Config(**shape))
        recorded = {key.removeprefix("teacher."): tensor for key, tensor in tensors.items()}
        restore_teacher(model, recorded, meta["seed"])
        dictionary = ConceptDictionary(
            tensors["sae.encoder.weight"].T,
            tensors["sae.latent_bias"],
            tensors["sae.decoder.weight"].T,
            tensors["sae.pre_bias"],
            k=meta["sae_k"],
            normalize="layer_norm",
        )
        teacher = ConceptTeacher(model, dictionary, meta["sae_layer_index"])
        found = teacher.label(tensors["input_ids"], k=meta["topK_attri"])
        labels = Labels(found.ids.numpy().astype(np.int32), found.scores.numpy())
        return labels, teacher.attribution(tensors["input_ids"]).numpy(), tensors["attribution"].numpy()

    def golden_model(self, name: str) -> tuple[dict[str, float], Array, Array]:
        """Our losses and logits of a golden file's student, and the file's own logits."""
        meta, golden = read_golden(GOLDEN / f"{name}.safetensors")
        weights = {key.removeprefix("weights."): t for key, t in golden.items() if key.startswith("weights.")}
        model = from_reference_state_dict(
            weights,
            num_heads=meta["n_head"],
            insert_layer=meta["insert_layer_index"],
            concept_topk=meta["concept_num"],
            concept_loss_weight=meta["lam_concept"],
        )
        ids = golden["input_ids"]
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids, concept_labels=golden["concept_labels"])
        losses = {name: float(getattr(output, name)) for name in ("loss", "ntp_loss", "concept_loss")}
        return losses, output.logits.numpy(), golden["logits"].view_as(output.logits).numpy()


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with changes merged in key by key."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key != "backbone"
        result[key] = merged(result[key], value) if both else value
    return result
