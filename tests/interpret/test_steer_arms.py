"""The steering evaluation: its texts against one-by-one generation, and a planted concept that it must find."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cocomix.concepts import ActivationLabeller, ConceptDictionary, ConceptTeacher
from cocomix.interpret import teacher_steering
from cocomix.interpret.effects import Strengths, concept_strengths
from cocomix.interpret.run_teacher import TextReader
from cocomix.interpret.steer_arms import (
    ARMS,
    SteerEvalSettings,
    measure_steering,
)
from cocomix.interpret.steer_report import SteerReport
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import make_dictionary, make_model
from tests.model.factories import CONCEPTS, VOCAB, plain, student, tokens

SETTINGS = SteerEvalSettings(
    concepts=(4, 9, 2),
    factors=(0.0, 1.0, 3.0),
    prompts=3,
    prompt_tokens=5,
    new_tokens=6,
    temperature=0.0,
    batch_size=7,
)
PROMPTS = tokens(3, 5)
ONES = Strengths(*(np.full(CONCEPTS, value) for value in (0.1, 2.0, 0.1, 1.5)))
WORDS = ([3, 1], [], [5])


def measure(model, teacher, settings=SETTINGS, prompts=PROMPTS, strengths=ONES, words=WORDS):
    reader = TextReader(ActivationLabeller(teacher))
    return measure_steering(model, reader, prompts, settings, strengths, words, end=0, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.fixture(scope="module")
def measured(teacher):
    return measure(student("gpt2"), teacher)


def activation_by_hand(teacher, text, concept):
    codes = teacher.dictionary.encode(teacher.decoder.hidden_states(text)[:, 5:])
    return float((codes.values * (codes.ids == concept)).sum(-1).mean())


def test_every_text_is_the_one_generated_alone_and_scored_for_every_concept(teacher, measured):
    model, reader = student("gpt2"), teacher.decoder.model
    greedy = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "eos_token_id": 0, "pad_token_id": 0}
    assert len(measured.rows) == 3 * (3 + 3 + 1) * 3
    for arm, place, factor, prompt in (("student", 1, 2, 0), ("teacher", 2, 1, 1), ("prompt", 0, 0, 2)):
        ids = PROMPTS[prompt : prompt + 1]
        concept, unit = SETTINGS.concepts[place], {"student": 2.0, "teacher": 1.5}.get(arm)
        if arm == "prompt":
            longer = torch.cat((torch.tensor([WORDS[place]]), ids), 1)
            text = torch.cat((ids, model.generate(longer, **greedy)[:, longer.shape[1] :]), 1)
        elif arm == "student":
            edit = ConceptEdit(concept, "add", SETTINGS.factors[factor] * unit)
            text = model.generate(ids, concept_edits=[edit], **greedy)
        else:
            with teacher_steering(teacher, [ConceptEdit(concept, "add", SETTINGS.factors[factor] * unit)]) as steered:
                text = steered.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
        found = measured.of(arm, "activation")[place, factor, prompt]
        assert found == pytest.approx([activation_by_hand(teacher, text, one) for one in SETTINGS.concepts], abs=1e-5)
        with torch.no_grad():
            logits = reader(text).logits[:, 4:-1].flatten(0, 1)
        loss = float(torch.nn.functional.cross_entropy(logits, text[:, 5:].flatten()))
        assert measured.of(arm, "loss")[place, factor, prompt] == pytest.approx(loss, rel=1e-4)
        assert measured.of(arm, "tokens")[place, factor, prompt].tolist() == text[0].tolist()


def test_the_control_of_a_concept_is_every_other_concepts_text(measured):
    report = SteerReport("run", "teacher", "dictionary", measured, ONES, ("a", "", "b"))
    every = measured.of("student", "activation")
    own, others = report.own_and_others("student")
    assert own[1] == pytest.approx(every[1, :, :, 1])
    assert others[1] == pytest.approx((every[0, :, :, 1] + every[2, :, :, 1]) / 2)
    assert np.array_equal(*(measured.of(arm, "activation")[:, 0] for arm in ("student", "student")))
    assert report.own_and_others("prompt")[0].shape == (3, 1, 3)


def test_a_factor_of_zero_is_no_steering(measured):
    neutral = measured.of("student", "tokens")[:, 0]
    assert (neutral == neutral[:1]).all()
    assert (measured.of("prompt", "tokens")[1, 0] == neutral[0]).all()  # nothing is put before these
    assert (measured.of("student", "tokens")[:, 2] != neutral).any()


def test_a_best_factor_that_changes_nothing_is_said_to(measured, monkeypatch):
    told = {}
    for best in (0, 2):
        report = SteerReport("run", "teacher", "dictionary", measured, ONES, ("a", "", "b"))
        monkeypatch.setattr(SteerReport, "best", lambda *_, best=best: best)
        told[best] = " ".join(report.found())
    assert "factor 0 (which changes nothing" in told[0]
    assert "changes nothing" not in told[2]


def planted(concept=7, token=13):
    """A student and a teacher in which one concept is one token: turned up, it is said; said, it is active."""
    language_model = plain("gpt2")
    contexts = tokens(64, 8)
    named = contexts.clone()
    named[:, -1] = token
    empty = [torch.zeros(shape) for shape in ((32, CONCEPTS), (CONCEPTS,), (CONCEPTS, 32), (32,))]
    reader = ConceptTeacher(language_model, ConceptDictionary(*empty), 0).decoder
    with_token, without = (reader.hidden_states(ids)[:, -1].mean(0) for ids in (named, contexts))
    direction = with_token - without
    direction = direction / direction.norm() ** 2  # 1 where the token is, 0 where it is not, on average
    encoder, bias, decoder, zero = empty
    encoder[:, concept] = direction
    bias[concept] = -direction @ without - 0.3
    decoder[concept] = with_token - without
    dictionary = ConceptDictionary(encoder, bias, decoder, zero, k=4, normalize="none")
    model = student("gpt2", mixing="residual")
    with torch.no_grad():
        for parameter in (*model.predictor.parameters(), *model.mixing.parameters()):
            parameter.zero_()
        model.lm_head.weight[token] *= 3
        model.predictor.head.bias[concept] = 1.0
        model.mixing.compression.weight[concept] = model.lm_head.weight[token]
    return model, ConceptTeacher(language_model, dictionary, 0)


def test_a_planted_concept_is_found_to_steer_and_the_others_are_its_control():
    model, reader = planted()
    settings = replace(
        SETTINGS, concepts=(7, 9), factors=(0.0, 1.0, 2.0, 5.0), temperature=1.0, prompts=6, new_tokens=10, fluency=1e9
    )
    strengths = Strengths(*(np.full(CONCEPTS, value) for value in (0.1, 2.0, 0.1, 0.0)))
    found = measure(model, reader, settings, tokens(6, 5), strengths, ([13], []))
    report = SteerReport("run", "teacher", "dictionary", found, strengths, ("it", ""))
    own, others = report.trends["student"]
    assert own[0] > 0.7 > others[0]
    assert own[1] == 0  # nothing can be said of a concept that is never active
    assert report.gains()["steering"][0] > 0.1
    assert settings.factors[report.best()] > 0


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "relu"])
def test_strengths_equal_a_naive_count(kind, monkeypatch):
    monkeypatch.setattr("cocomix.interpret.effects._TOKENS_AT_ONCE", 8)  # a block a batch, each with slots of its own
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(kind), 1)
    model, ids = student("gpt2"), tokens(6, 8)
    found = concept_strengths(model, ids, reader=TextReader(ActivationLabeller(teacher)))
    with torch.no_grad():
        output = model(ids, output_concept_logits=True)
    codes = teacher.dictionary.encode(teacher.decoder.hidden_states(ids))
    for concept in (0, 7, CONCEPTS - 1):
        there = output.concept_ids == concept
        assert found.share[concept] == pytest.approx(float(there.any(-1).float().mean()))
        latents = (codes.values * (codes.ids == concept)).sum(-1)
        assert found.active[concept] == pytest.approx(float((latents > 0).float().mean()))
        if (latents > 0).any():
            ranked = latents[latents > 0].sort().values
            high = float(ranked[math.ceil(0.95 * len(ranked)) - 1])
            assert found.latent[concept] == pytest.approx(max(high - float(latents.mean()), 0.1), rel=1e-5)
        if there.any():
            high = float(output.concept_values[there].quantile(0.95, interpolation="higher"))
            mean = float(output.concept_logits[..., concept].mean())
            assert found.logit[concept] == pytest.approx(max(high - mean, 0.1), abs=0.2)


def test_concepts_are_chosen_by_how_often_they_are_predicted():
    share = np.array([0.9, 0.3, 0.2, 0.1, 0.4, 0.0])
    strengths = Strengths(share, share, np.array([1, 1, 0, 1, 1, 1.0]), share)
    assert strengths.usable(2) == [4, 1]
    assert strengths.usable(9) == [4, 1, 2, 3]
    assert strengths.usable(9, active=True) == [4, 1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (0.0, 2.0)}, "factors"),
        ({"factors": (0.0, 2.0, 2.0)}, "factors"),
        ({"factors": (1.0, 2.0, 3.0)}, "with 0"),
        ({"factors": (0.0, 2.0, 3.0), "turn": "scale"}, "with 1"),
        ({"factors": (0.0, 2.0, float("nan"))}, "100"),
        ({"factors": (0.0, 2.0, 101.0)}, "100"),
        ({"concepts": (1, 1)}, "each once"),
        ({"concepts": (1,)}, "two concepts"),
        ({"num_concepts": 1}, "num_concepts=1"),
        ({"prompts": 1}, "prompts=1"),
        ({"new_tokens": 3}, "new_tokens=3"),
        ({"fluency": 0.5}, r"fluency=0\.5"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"turn": "set"}, "turn='set'"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, message):
    with pytest.raises(CoCoMixError, match=message):
        replace(SETTINGS, **changes)


def test_models_and_concepts_that_do_not_fit_are_refused(teacher):
    for model, settings, message in (
        (plain("gpt2"), SETTINGS, "has no concepts"),
        (student("gpt2", mixing="none"), SETTINGS, "mixes none in"),
        (student("gpt2", num_concepts=20), SETTINGS, "48 concepts.* 20"),
        (student("gpt2"), replace(SETTINGS, concepts=(1, CONCEPTS)), f"concept {CONCEPTS}"),
        (student("gpt2"), replace(SETTINGS, new_tokens=60), "64 tokens"),
    ):
        with pytest.raises(CoCoMixError, match=message):
            measure(model, teacher, settings)
    assert set(ARMS) == {"student", "teacher", "prompt"}
