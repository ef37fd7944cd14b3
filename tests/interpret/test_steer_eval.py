"""The steering evaluation: its texts against one-by-one generation, and a planted concept that it must find."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cocomix.concepts import AttributionLabeller, ConceptDictionary, ConceptTeacher
from cocomix.interpret import teacher_steering
from cocomix.interpret.rank_statistics import RankTrend
from cocomix.interpret.steer_effects import ARMS, SteerEvalSettings, measure_steering
from cocomix.interpret.steer_scores import ConceptScore, control_p_value, curve, score_concepts, steering_shares
from cocomix.interpret.survey import survey_concepts
from cocomix.interpret.text_measures import MEASURES, measure_texts
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import make_dictionary, make_model
from tests.model.factories import CONCEPTS, VOCAB, plain, student, tokens

SETTINGS = SteerEvalSettings(
    concepts=(4, 9, 2),
    turn="scale",
    factors=(-3.0, 1.0, 8.0),
    prompts=3,
    prompt_tokens=5,
    new_tokens=6,
    temperature=0.0,
    batch_size=7,
    resamples=100,
)
PROMPTS = tokens(3, 5)
K = 2


def measure(model, teacher, settings=SETTINGS, prompts=PROMPTS, **extra):
    return measure_steering(
        model, teacher, AttributionLabeller(teacher), K, prompts, settings, end=0, vocab_size=VOCAB, **extra
    )


@pytest.fixture(scope="module")
def teacher():
    return ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)


@pytest.fixture(scope="module")
def measured(teacher):
    return measure(student("gpt2"), teacher)


def test_every_text_is_the_one_generated_alone(teacher, measured):
    model = student("gpt2")
    greedy = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "eos_token_id": 0, "pad_token_id": 0}
    for arm, concept_place, factor_place, prompt in (("student", 1, 2, 0), ("control", 0, 2, 2), ("teacher", 2, 2, 1)):
        turned = (measured.controls if arm == "control" else measured.concepts)[concept_place]
        edits = [ConceptEdit(turned, "scale", SETTINGS.factors[factor_place])]
        ids = PROMPTS[prompt : prompt + 1]
        if arm == "teacher":
            with teacher_steering(teacher, edits) as steered:
                text = steered.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
        else:
            text = model.generate(ids, concept_edits=edits, **greedy)
        concept = measured.concepts[concept_place]
        expected = measure_texts(
            text, 5, [concept], student=model, teacher=teacher, labeller=AttributionLabeller(teacher), k=K
        )
        for name in measured.measures:
            found = measured.values[arm][name][concept_place, factor_place, prompt]
            assert found == pytest.approx(expected[name][0], rel=1e-4, abs=1e-6), (arm, name)


def test_a_factor_of_one_is_no_steering(measured):
    assert set(measured.measures) == set(MEASURES) - {"following"}
    for name in measured.measures:
        neutral = measured.values["student"][name][:, 1]
        assert np.array_equal(neutral, measured.values["control"][name][:, 1])
    assert not np.array_equal(measured.values["student"]["activation"], measured.values["control"]["activation"])


def test_adding_adds_so_many_times_the_usual_value(teacher):
    model = student("gpt2")
    survey = survey_concepts(model, teacher, tokens(8, 16), window=4)
    settings = replace(SETTINGS, turn="add", factors=(-2.0, 0.0, 3.0))
    found = measure(model, teacher, settings, survey=survey)
    greedy = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "eos_token_id": 0, "pad_token_id": 0}
    ids = PROMPTS[:1]
    for arm, place, factor, value in (("student", 2, 2, 3.0), ("control", 0, 0, -2.0), ("teacher", 1, 2, 3.0)):
        turned = (found.controls if arm == "control" else found.concepts)[place]
        usual = survey.latent if arm == "teacher" else survey.logit
        edit = ConceptEdit(turned, "add", value * float(usual[turned]))
        if arm == "teacher":
            with teacher_steering(teacher, [edit]) as steered:
                text = steered.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
        else:
            text = model.generate(ids, concept_edits=[edit], **greedy)
        expected = measure_texts(
            text, 5, [found.concepts[place]], student=model, teacher=teacher, labeller=AttributionLabeller(teacher), k=K
        )
        for name in found.measures:
            assert found.values[arm][name][place, factor, 0] == pytest.approx(expected[name][0], rel=1e-4, abs=1e-6)
    unsteered = model.generate(ids, **greedy)
    expected = measure_texts(
        unsteered, 5, [found.concepts[0]], student=model, teacher=teacher, labeller=AttributionLabeller(teacher), k=K
    )
    assert found.values["student"]["activation"][0, 1, 0] == pytest.approx(expected["activation"][0], rel=1e-4)
    with pytest.raises(CoCoMixError, match="needs a survey"):
        measure(model, teacher, settings)
    with pytest.raises(CoCoMixError, match="use --turn scale"):
        measure(model, teacher, settings, survey=replace(survey, logit=torch.zeros(CONCEPTS)))


def test_controls_are_other_concepts_of_those_measured(measured):
    assert all(control != concept for control, concept in zip(measured.controls, measured.concepts, strict=True))
    assert set(measured.controls) <= set(measured.concepts)


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


def test_a_planted_concept_is_found_to_steer_and_its_control_is_not():
    model, reader = planted()
    factors = (-10.0, -3.0, 0.0, 1.0, 2.0, 4.0, 10.0)
    changes = {"concepts": (7,), "factors": factors, "temperature": 1.0, "prompts": 6, "new_tokens": 10}
    followers = torch.zeros(1, VOCAB)
    followers[0, 13] = 1.0  # the planted token
    found = measure(model, reader, replace(SETTINGS, **changes), tokens(6, 5), followers=followers)
    (follows,) = score_concepts(found, "following")
    assert follows.steers()
    assert not follows.steers("control")
    assert follows.gain > 0.1
    (score,) = score_concepts(found)
    assert score.steers()
    assert score.trends["student"].correlation > 0.7
    assert score.gain > 0.1
    assert not score.steers("control")
    assert score.trends["control"].correlation < score.trends["student"].low
    assert steering_shares((score,)) == {"student": 1.0, "control": 0.0, "teacher": float(score.steers("teacher"))}


def test_scores_against_the_control_are_tested_over_concepts():
    def score(student, control):
        trends = {"student": student, "control": control, "teacher": 0.0}
        return ConceptScore(0, 1, {arm: RankTrend(value, -1.0, 1.0, 0.5) for arm, value in trends.items()}, 0.0)

    clear = tuple(score(0.5 + 0.01 * place, 0.0) for place in range(8))
    assert control_p_value(clear) == pytest.approx(2 / 2**8)  # all of eight on one side
    assert control_p_value(clear[:5]) is None
    assert control_p_value(tuple(score(0.3, 0.3) for _ in range(8))) == 1.0


def test_curves_are_means_over_concepts_and_prompts(measured):
    for arm in ARMS:
        activation = curve(measured, arm, "activation")
        assert activation.mean == pytest.approx(measured.values[arm]["activation"].mean((0, 2)))
        assert (activation.low <= activation.mean + 1e-9).all()
        assert (activation.mean <= activation.high + 1e-9).all()
        perplexity = curve(measured, arm, "teacher_loss")
        assert perplexity.mean == pytest.approx(np.exp(measured.values[arm]["teacher_loss"].mean((0, 2))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (1.0, 2.0)}, "at least three different numbers"),
        ({"factors": (1.0, 2.0, 2.0)}, "at least three different numbers"),
        ({"factors": (1.0, 2.0, float("nan"))}, "between -100 and 100"),
        ({"factors": (1.0, 2.0, 101.0)}, "between -100 and 100"),
        ({"concepts": (1, 1)}, "named twice"),
        ({"prompts": 1}, "prompts=1 must be at least 2"),
        ({"new_tokens": 3}, "new_tokens=3 must be at least 4"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"turn": "set"}, "turn='set' is not one of add, scale"),
        ({"choice": "best"}, "choice='best' is not one of persistent, frequent"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes, message):
    with pytest.raises(CoCoMixError, match=message):
        replace(SETTINGS, **changes)


def test_models_and_concepts_that_do_not_fit_are_refused(teacher):
    for model, settings, message in (
        (plain("gpt2"), SETTINGS, "has no concepts"),
        (student("gpt2", mixing="none"), SETTINGS, "mixes none in"),
        (student("gpt2", num_concepts=20), SETTINGS, "has 48 concepts, but the model 20"),
        (student("gpt2"), replace(SETTINGS, concepts=(CONCEPTS,)), f"concept {CONCEPTS} does not exist"),
        (student("gpt2"), replace(SETTINGS, concepts=()), "no concept to turn"),
        (student("gpt2"), replace(SETTINGS, new_tokens=60), "do not fit the context of 64 tokens"),
    ):
        with pytest.raises(CoCoMixError, match=message):
            measure(model, teacher, settings)
