"""A teacher and a dictionary that ask for a begin-of-text token: refused without it, and everything after that with it.

The teacher is Gemma's case in small. Its attention looks at the begin-of-text token and writes what it finds there into
every hidden state; the dictionary, fitted on such contexts, takes it for granted. That token's own hidden state is huge
and in the dictionary's eyes noise.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.artifacts import read_json
from cocomix.concepts import (
    AttributionConfig,
    ConceptDictionary,
    ConceptTeacher,
    DictionaryConfig,
    FitSettings,
    TeacherConfig,
    TeacherLabeller,
    load_teacher,
    measure_fit,
)
from cocomix.data import VALIDATION, Tokens, begin_of_text
from cocomix.evaluation import Run, evaluate_run
from cocomix.interpret import encode
from cocomix.labelling import LabelBlocks, Labels, fit_on_data, label_data, open_labeller
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from cocomix.runtime.ignore import IGNORE
from cocomix.training import train
from cocomix.training.online import OnlineLabels
from cocomix.training.recipe import RunConfig
from tests.workshop import BLOCK, VOCAB, Workshop, prepare_toy

WIDTH, DESCRIBED = 16, 14  # the dictionary describes the first dimensions of the hidden states
WRITTEN, MARK = 14, 15  # dimensions: what attention writes, what marks the begin-of-text token
CPU = torch.device("cpu")


class Gemma(NamedTuple):
    """A small one: data with and without the token, teacher and dictionary."""

    begun: Tokens
    plain: Tokens
    teacher: TeacherConfig
    dictionary: DictionaryConfig


def sink_model(begin: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB + 1,
        bos_token_id=begin,
        eos_token_id=0,
        n_positions=BLOCK,
        n_embd=WIDTH,
        n_layer=2,
        n_head=1,
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for embedding in (model.transformer.wte, model.transformer.wpe):
            embedding.weight[:, DESCRIBED:] = 0
        model.transformer.wte.weight[begin] = 10.0 * torch.eye(WIDTH)[MARK]
        block = model.transformer.h[0]
        for parameter in (*block.attn.parameters(), *block.mlp.parameters()):
            parameter.zero_()
        query, key, value = 0, WIDTH, 2 * WIDTH  # first columns
        block.attn.c_attn.bias[query] = 20.0
        block.attn.c_attn.weight[MARK, key] = 5.0
        block.attn.c_attn.weight[MARK, value] = 1.0
        block.attn.c_proj.weight[0, WRITTEN] = 1.0
    return model


def sink_dictionary(teacher: GPT2LMHeadModel, begin: int, prepend_bos: bool | None) -> ConceptDictionary:
    """Every described direction and its opposite is a concept; what is written after the token is its bias."""
    directions = torch.eye(WIDTH)[:DESCRIBED]
    after = teacher(torch.tensor([[begin, 5, 6]]), output_hidden_states=True).hidden_states[1][0, 1]
    bias = after.detach() * torch.eye(WIDTH)[WRITTEN]
    decoder = torch.cat([directions, -directions])
    return ConceptDictionary(
        decoder.T, torch.zeros(len(decoder)), decoder, bias, subtract_b_dec=False, prepend_bos=prepend_bos
    )


@pytest.fixture(scope="module")
def gemma(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    folder = tmp_path_factory.mktemp("gemma")
    tokenizer = load_tokenizer(str(workshop.data / "tokenizer"))
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    teacher = sink_model(tokenizer.bos_token_id)
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    sink_dictionary(teacher, tokenizer.bos_token_id, True).save(folder / "sae")
    source = {"tokenizer": str(folder / "teacher"), "vocab_size": None}
    begun, plain = (
        prepare_toy(workshop.corpus, folder / name, prepend_bos=name == "begun", **source)
        for name in ("begun", "plain")
    )
    return Gemma(
        begun, plain, TeacherConfig(model=str(folder / "teacher"), layer=0), DictionaryConfig(path=str(folder / "sae"))
    )


def made_by(gemma: Gemma) -> AttributionConfig:
    return AttributionConfig(teacher=gemma.teacher, dictionary=gemma.dictionary)


@pytest.fixture(scope="module")
def labels(gemma: Gemma) -> Path:
    label_data(gemma.begun.path, made_by(gemma), gemma.begun.path / "labels")
    return gemma.begun.path / "labels"


@pytest.fixture(scope="module")
def run(gemma: Gemma, labels: Path, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes: dict[str, Any] = {"data": str(gemma.begun.path), "labels": str(labels), "name": "begun"}
    recipe = RunConfig.model_validate({**workshop.values("cocomix", document_masks=True), **changes})
    return Run.open(train(recipe, tmp_path_factory.mktemp("runs") / "begun"))


def rows(blocks: LabelBlocks) -> Tensor:
    return torch.stack([blocks[index]["concept_labels"] for index in range(len(blocks))])


# ---- labelling ------------------------------------------------------------------------------------------------------


def test_without_the_token_the_refusal_names_the_option(
    gemma: Gemma, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cocomix")
    config = made_by(gemma)
    with pytest.raises(CoCoMixError, match=r"block 0 .*--prepend-bos.*--force"):
        label_data(gemma.plain.path, config, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    label_data(gemma.plain.path, config, tmp_path / "labels", force=True)
    assert "begin with the begin-of-text token, which these blocks do not" in caplog.text
    assert any("does not describe" in entry.message for entry in caplog.records if entry.levelname == "WARNING")


def test_with_the_token_every_position_but_its_own_is_labelled(gemma: Gemma, labels: Path) -> None:
    store = Labels.open(labels)
    for split, meta in gemma.begun.manifest.splits.items():
        found = rows(store.split(split))
        assert found.shape == (meta.blocks, BLOCK, 4)
        assert (found[:, [0, -1]] == IGNORE).all()
        assert (found[:, 1:-1, 0] != IGNORE).float().mean() > 0.8


def test_labels_are_those_of_a_teacher_that_knows_of_no_such_token_but_at_it(gemma: Gemma, labels: Path) -> None:
    teacher = ConceptTeacher(
        load_teacher(gemma.teacher.model), ConceptDictionary.from_sae_lens(gemma.dictionary.path), gemma.teacher.layer
    )
    blocks = torch.stack([row["input_ids"] for row in gemma.begun.split(VALIDATION)])
    expected = teacher.label(blocks, reduction="sum").ids
    assert (expected[:, 0] != IGNORE).any()
    expected[:, 0] = IGNORE
    assert torch.equal(rows(Labels.open(labels).split(VALIDATION)).long(), expected)


def test_labels_made_while_training_are_the_stored_ones(
    gemma: Gemma, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cocomix")
    labeller, _ = open_labeller(gemma.begun, made_by(gemma))
    assert isinstance(labeller, TeacherLabeller)
    assert "begin-of-text" not in caplog.text
    blocks = torch.stack([row["input_ids"] for row in gemma.begun.split(VALIDATION)])
    made = OnlineLabels(labeller, made_by(gemma), torch.device("cpu")).label(blocks)
    assert torch.equal(made, rows(Labels.open(labels).split(VALIDATION)).long())
    padded = torch.cat([torch.full((len(blocks), 2), 3), blocks[:, :-2]], dim=1)  # on the left
    mask = torch.ones_like(padded).index_fill_(1, torch.tensor([0, 1]), 0)
    assert (labeller.teacher.label(padded, mask).ids[:, :3] == IGNORE).all()


def test_a_dictionary_of_contexts_without_the_token_asks_for_data_without(gemma: Gemma, tmp_path: Path) -> None:
    begin = gemma.begun.manifest.bos_token_id
    assert begin is not None
    teacher = GPT2LMHeadModel.from_pretrained(gemma.teacher.model)
    other = sink_dictionary(teacher, 7, prepend_bos=False)  # what attention writes where the token is not
    other.save(tmp_path / "sae")
    dictionary = DictionaryConfig(path=str(tmp_path / "sae"))
    with pytest.raises(CoCoMixError, match=r"without --prepend-bos"):
        open_labeller(gemma.begun, AttributionConfig(teacher=gemma.teacher, dictionary=dictionary))
    sink_dictionary(teacher, begin, prepend_bos=None).save(tmp_path / "silent")
    silent = DictionaryConfig(path=str(tmp_path / "silent"))
    with pytest.raises(CoCoMixError, match=r"\); check the layer and the SAE, or use --force"):
        open_labeller(gemma.plain, AttributionConfig(teacher=gemma.teacher, dictionary=silent))


def test_the_fit_is_that_of_the_text(gemma: Gemma) -> None:
    """As a slow twin measures it; the token's own hidden state would spoil it."""
    model = load_teacher(gemma.teacher.model)
    dictionary = ConceptDictionary.from_sae_lens(gemma.dictionary.path)
    assert dictionary.prepend_bos is True
    teacher = ConceptTeacher(model, dictionary, 0, bos_token_id=gemma.begun.manifest.bos_token_id)
    blocks = torch.stack([row["input_ids"] for row in gemma.begun.split(VALIDATION)])[:6]
    hidden = teacher.decoder.hidden_states(blocks)
    text = hidden[:, 1:].flatten(0, 1)
    error = (text - dictionary.reconstruct(text)).pow(2).sum() / (text - text.mean(0)).pow(2).sum()
    found = measure_fit(teacher, blocks, batch_size=4)
    assert found.positions == len(text)
    assert found.fvu == pytest.approx(float(error), abs=1e-5)
    assert found.fvu < 1e-3
    replaced = torch.cat([hidden[:, :1], dictionary.reconstruct(hidden[:, 1:])], dim=1)
    expected = teacher.decoder.loss(blocks, replace=lambda _: replaced) / (BLOCK - 1) / len(blocks)
    assert found.ce_dictionary == pytest.approx(float(expected), rel=1e-5)
    assert measure_fit(ConceptTeacher(model, dictionary, 0), blocks).fvu > 0.5


def test_a_dictionary_fitted_here_leaves_the_token_out_and_says_so(gemma: Gemma, tmp_path: Path) -> None:
    settings = FitSettings(num_concepts=32, k=8, tokens=4000, batch_size=256, learning_rate=5e-3)
    report = fit_on_data(gemma.begun.path, gemma.teacher, tmp_path / "sae", settings).manifest.report
    assert report is not None
    assert report.fit.positions == (BLOCK - 1) * gemma.begun.manifest.splits[VALIDATION].blocks
    metadata = read_json(tmp_path / "sae" / "cfg.json")["metadata"]
    assert (metadata["prepend_bos"], metadata["context_size"]) == (True, BLOCK)
    assert ConceptDictionary.from_sae_lens(tmp_path / "sae").prepend_bos is True


# ---- a run on such data ---------------------------------------------------------------------------------------------


def test_the_run_reads_texts_as_it_was_trained(run: Run, gemma: Gemma) -> None:
    begin, model, tokenizer = gemma.begun.manifest.bos_token_id, run.model(), run.tokenizer()
    assert model.config.bos_token_id == begin != model.config.eos_token_id
    assert begin_of_text(tokenizer) == begin
    plain = gemma.plain.tokenizer().encode("list of", add_special_tokens=False)
    assert encode(model, tokenizer, "list of").tolist() == [[begin, *plain]]
    assert encode(model, gemma.plain.tokenizer(), "list of").tolist() == [plain]
    room = BLOCK - len(plain)
    with pytest.raises(CoCoMixError, match="context"):
        encode(model, tokenizer, "list of", room=room)
    assert encode(model, tokenizer, "list of", room=room - 1).shape == (1, len(plain) + 1)


def test_losses_by_document_are_those_of_a_walk(run: Run, gemma: Gemma) -> None:
    result = evaluate_run(run, device=CPU, batch_size=4, reliance=False)
    found = result.token_losses()
    expected: dict[int, int] = {}
    document, first = 0, True  # documents apart: the first token of a document has no context but the begin-of-text one
    for block in gemma.begun.split(VALIDATION):
        for place, token in enumerate(block["input_ids"].tolist()):
            if place > 0:
                predicted = place == 1 or not first
                expected[document] = expected.get(document, 0) + predicted
                first = token == gemma.begun.manifest.eos_token_id
                document += first
    assert found.groupby("document").size().to_dict() == {name: count for name, count in expected.items() if count}
    assert result.targets == len(found)
    assert result.loss == pytest.approx(found["loss"].mean())


def test_other_data_that_begins_otherwise_is_told_of(run: Run, gemma: Gemma, caplog: pytest.LogCaptureFixture) -> None:
    evaluate_run(run, device=CPU, data=gemma.plain.path, limit_blocks=2, reliance=False)
    assert any("only one of the two was prepared with --prepend-bos" in message for message in caplog.messages)


def test_the_harness_begins_prompts_once_and_keeps_the_token_when_it_cuts(run: Run, gemma: Gemma) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from cocomix.evaluation.harness import CountingModel

    begin = gemma.begun.manifest.bos_token_id
    seen: list[list[int]] = []

    class Watched(CountingModel):
        def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.extend(inps.tolist())
            return super()._model_call(inps, *args, **kwargs)

    model = Watched(run.model(), run.tokenizer(), batch_size=1, dtype=torch.float32)

    def asked(*texts: str) -> Instance:
        return Instance(request_type="", doc={}, arguments=texts, idx=0)

    long = "the list of items and a string " * 3
    with torch.no_grad():
        model.loglikelihood([asked("the list", " of")])
        model.loglikelihood([asked(long, " of")])
        model.loglikelihood_rolling([asked("the list of")])
    short, cut, rolled = seen
    text = gemma.plain.tokenizer()
    assert short == [begin, *text.encode("the list of")][: len(short)]
    assert (cut[0], len(cut)) == (begin, BLOCK)
    assert cut[1:] == text.encode(long + " of")[-BLOCK:-1]
    assert rolled == [begin, *text.encode("the list of")][:-1]
    assert model.truncated == 1
