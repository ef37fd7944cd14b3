"""The survey of concepts in a text against its definition position by position, and the choice made from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cocomix.concepts import ConceptDictionary, ConceptTeacher
from cocomix.data import positions_of_rows
from cocomix.interpret.survey import ConceptSurvey, choose_concepts, survey_concepts
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import make_dictionary, make_model
from tests.model.factories import CONCEPTS, student, tokens

SURVEY = ConceptSurvey(
    positions=100,
    window=4,
    mixed=torch.tensor([0, 10, 51, 50, 7]),
    logit=torch.ones(5),
    latent=torch.ones(5),
    persistence=torch.tensor([0.9, 0.2, 0.8, 0.1, -0.3]),
)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_every_number_is_what_its_definition_says(kind):
    model, ids, window = student("gpt2"), tokens(300, 16), 5  # more tokens than are read at once
    with torch.no_grad():
        model.predictor.head.bias[5] = -100.0  # never mixed in
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(kind), 1)
    found = survey_concepts(model, teacher, ids, window=window)
    with torch.no_grad():
        output = model(ids)
        latents = teacher.dictionary.latents(teacher.decoder.hidden_states(ids)).double().numpy()
    assert found.positions == ids.numel()
    assert found.window == window
    for concept in range(CONCEPTS):
        values = output.concept_values[(output.concept_ids == concept) & (output.concept_values > 0)]
        assert found.mixed[concept] == len(values)
        if len(values):
            assert float(found.logit[concept]) == pytest.approx(float(values.mean()), rel=1e-5)
        now = latents[:, :-window, concept].ravel()
        later = np.stack([latents[:, t + 1 : t + 1 + window, concept].mean(1) for t in range(16 - window)], 1).ravel()
        if now.std() > 0 and later.std() > 0:
            assert float(found.persistence[concept]) == pytest.approx(np.corrcoef(now, later)[0, 1], abs=1e-6)
        else:
            assert found.persistence[concept] == 0
        active = latents[..., concept][latents[..., concept] > 0]
        if len(active):
            assert float(found.latent[concept]) == pytest.approx(active.mean(), rel=1e-5)
    assert found.mixed[5] == 0
    everywhere = output.concept_values[output.concept_values > 0].mean()
    assert float(found.logit[5]) == pytest.approx(float(everywhere), rel=1e-5)


def test_a_concept_of_whole_texts_persists_and_one_of_single_tokens_does_not():
    language_model = make_model("gpt2")
    hidden = ConceptTeacher(language_model, make_dictionary(), 0).decoder.hidden_states
    ids = torch.where(
        torch.arange(64)[:, None] < 32, tokens(64, 24) % 30, 30 + tokens(64, 24) % 30
    )  # two kinds of text
    single = tokens(64, 24) == 7
    ids = torch.where(single, 7, ids)
    with torch.no_grad():
        states = hidden(ids)
    kind = states[:32].mean((0, 1)) - states[32:].mean((0, 1))
    token = states[single].mean(0) - states[~single].mean(0)
    encoder, decoder = torch.stack([kind, token], 1), torch.eye(2, states.shape[-1])
    bias = -torch.stack([(states @ kind).mean(), (states @ token).mean()])
    dictionary = ConceptDictionary(encoder, bias, decoder, torch.zeros(states.shape[-1]), k=2, normalize="none")
    teacher = ConceptTeacher(language_model, dictionary, 0)
    found = survey_concepts(student("gpt2", num_concepts=2, concept_topk=1), teacher, ids, window=8)
    assert found.persistence[0] > 0.3
    assert abs(found.persistence[1]) < 0.2


def test_documents_are_kept_apart_where_the_student_was_trained_so():
    model, ids = student("gpt2"), tokens(6, 16)
    ids[:, 7] = 0  # ends a document
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    positions = positions_of_rows(ids, 0)
    apart = survey_concepts(model, teacher, ids, window=4, position_ids=positions)
    with torch.no_grad():
        output = model(ids, position_ids=positions, use_cache=False)
    counts = torch.bincount(output.concept_ids[output.concept_values > 0], minlength=CONCEPTS)
    assert torch.equal(apart.mixed, counts)
    assert not torch.equal(apart.mixed, survey_concepts(model, teacher, ids, window=4).mixed)


def test_the_begin_of_text_token_is_not_read():
    ids = tokens(6, 12) % 60 + 1
    ids[:, 0] = 0
    model = student("gpt2")
    plain, beginning = (
        survey_concepts(
            model, ConceptTeacher(make_model("gpt2"), make_dictionary(), 1, bos_token_id=token), ids, window=4
        )
        for token in (None, 0)
    )
    assert torch.equal(plain.mixed, beginning.mixed)
    assert not torch.equal(plain.persistence, beginning.persistence)


def test_concepts_are_chosen_by_score_among_those_mixed_in_but_not_everywhere():
    frequency = torch.tensor([9, 1, 8, 3, 5])
    assert choose_concepts(SURVEY, frequency, 5) == (4, 3, 1)
    assert choose_concepts(SURVEY, frequency, 1) == (4,)
    assert choose_concepts(SURVEY, SURVEY.persistence, 5) == (1, 3)
    with pytest.raises(CoCoMixError, match="--concepts"):
        choose_concepts(SURVEY, torch.tensor([9, 0, 8, 0, 0]), 5)
    with pytest.raises(CoCoMixError, match="--concepts"):
        choose_concepts(replace(SURVEY, mixed=torch.zeros(5, dtype=torch.int64)), frequency, 5)
