import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cocomix.concepts import AttributionLabeller, ConceptTeacher
from cocomix.interpret.text_measures import MEASURES, distinct_bigrams, measure_texts, repeated_fourgrams
from tests.concepts.conftest import VOCAB, make_dictionary, make_model
from tests.model.factories import student

PROMPT = 4


def test_distinct_and_repeated():
    assert distinct_bigrams([1, 2, 1, 2, 1]) == 2 / 4
    assert distinct_bigrams([7]) == 1.0
    assert repeated_fourgrams([1, 2, 1, 2, 1, 2]) == pytest.approx(1 / 3)
    assert repeated_fourgrams([1, 2, 3, 4, 5]) == 0.0
    assert repeated_fourgrams([1, 1]) == 0.0


def test_measures_equal_a_text_at_a_time():
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    model = student("gpt2")
    texts = torch.randint(1, VOCAB, (5, 12), generator=torch.Generator().manual_seed(0))
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(texts))
    concepts = latents[:, PROMPT:].sum(1).argmax(-1).tolist()
    found = measure_texts(
        texts, PROMPT, concepts, student=model, teacher=teacher, labeller=AttributionLabeller(teacher), k=3
    )
    assert set(found) == set(MEASURES) - {"following"}
    for row, (text, concept) in enumerate(zip(texts, concepts, strict=True)):
        assert found["activation"][row] == pytest.approx(float(latents[row, PROMPT:, concept].mean()), rel=1e-5)
        assert found["activation"][row] > 0
        ids = teacher.label(text[None], k=3).ids[0]
        rate = np.mean([concept in ids[position].tolist() for position in range(PROMPT, len(text) - 1)])
        assert found["label_rate"][row] == pytest.approx(rate)
        for name, lm in (("student_loss", model), ("teacher_loss", teacher.decoder.model)):
            with torch.no_grad():
                logits = lm(text[None]).logits[0, PROMPT - 1 : -1]
            assert found[name][row] == pytest.approx(float(F.cross_entropy(logits, text[PROMPT:])), rel=1e-4)
        assert found["distinct_2"][row] == distinct_bigrams(text[PROMPT:].tolist())
    assert any(found["label_rate"])


def test_following_is_the_mean_score_of_the_new_tokens():
    teacher = ConceptTeacher(make_model("gpt2"), make_dictionary(), 1)
    generator = torch.Generator().manual_seed(0)
    texts, followers = torch.randint(1, VOCAB, (3, 9), generator=generator), torch.randn(3, VOCAB, generator=generator)
    shared = {"student": student("gpt2"), "teacher": teacher, "labeller": AttributionLabeller(teacher), "k": 3}
    found = measure_texts(texts, PROMPT, [0, 1, 2], followers=followers, **shared)
    for row, text in enumerate(texts.tolist()):
        scores = [followers[row, token].item() for token in text[PROMPT:]]
        assert found["following"][row] == pytest.approx(np.mean(scores), rel=1e-5)
