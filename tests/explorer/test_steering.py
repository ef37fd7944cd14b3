import threading
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from cocomix.explorer.continuation import Sampling
from cocomix.explorer.limits import LIMITS
from cocomix.explorer.steer_state import SteerState, make_edit, make_sampling, steer
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.explorer.conftest import CONTEXT
from tests.workshop import CONCEPTS

PROMPT = "the list of"
EDITS = (ConceptEdit(3, "scale", 5.0), ConceptEdit(7, "add", -2.5), ConceptEdit(0, "set", 9.0), ConceptEdit(11, "ban"))


def final(subject, state):
    *_, texts = steer(subject, state)
    return texts


def strongest(subject):
    output = subject.model(input_ids=subject.encode(PROMPT))
    return int(output.concept_ids[0, -1, 0])


def query(state):
    return dict(parse_qsl(state.to_query(), keep_blank_values=True))


@pytest.mark.parametrize("prompt", [PROMPT, "", "a & b = <script>\n\t+%20 é 🙂 #?"])
def test_a_link_restores_the_state(subject, prompt):
    state = SteerState(prompt, EDITS, Sampling(12, temperature=0.3, top_k=None, seed=7))
    assert SteerState.from_query(query(state), subject) == state
    assert SteerState.from_query({}, subject) == SteerState("", (), Sampling(subject.limits.new_tokens))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"edits": f"{CONCEPTS}:scale:5"},
            f"'{CONCEPTS}' is out of range; give a whole number from 0 to {CONCEPTS - 1}",
        ),
        ({"edits": "-1:scale:5"}, "out of range"),
        ({"edits": "x:scale:5"}, "is not a number"),
        ({"edits": "3"}, "choose one of scale, add, set, ban"),
        ({"edits": "3:explode:5"}, "choose one of scale, add, set, ban"),
        ({"edits": "3:scale:nan"}, "must be a number from -20 to 20"),
        ({"edits": "3:scale:1e9"}, "must be a number from -20 to 20"),
        ({"edits": "3:scale"}, "must be a number from -20 to 20"),
        ({"edits": ",".join(["3:ban"] * 6)}, "5 at most"),
        ({"tokens": "0"}, "number of tokens"),
        ({"tokens": "100000"}, "number of tokens"),
        ({"tokens": "nan"}, "number of tokens"),
        ({"temperature": "-1"}, "temperature"),
        ({"temperature": "inf"}, "temperature"),
        ({"top_k": "1.5"}, "top-k"),
        ({"seed": "-3"}, "seed"),
    ],
)
def test_a_link_out_of_range_is_refused(subject, changes, says):
    with pytest.raises(CoCoMixError, match=says):
        SteerState.from_query(changes, subject)


def test_neutral_edits_leave_all_texts_alone_and_strong_ones_do_not(subject):
    concept, sampling = strongest(subject), Sampling(14, seed=2)
    plain = final(subject, SteerState(PROMPT, (), sampling))
    assert plain.unsteered == plain.steered
    assert final(subject, SteerState(PROMPT, (ConceptEdit(concept, "scale", 1.0),), sampling)) == plain
    turned = final(subject, SteerState(PROMPT, (ConceptEdit(concept, "set", 20.0),), sampling))
    assert turned.unsteered == plain.unsteered
    assert turned.steered != plain.steered
    assert turned.teacher is not None


def test_greedy_texts_equal_those_of_generate(subject):
    edits = (ConceptEdit(strongest(subject), "scale", 8.0),)
    texts = final(subject, SteerState(PROMPT, edits, Sampling(14, temperature=0.0)))
    ids, decode = subject.encode(PROMPT), subject.tokenizer.decode
    options = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    for text, extra in ((texts.unsteered, {}), (texts.steered, {"concept_edits": edits})):
        assert PROMPT + text == decode(subject.model.generate(ids, **options, **extra)[0], skip_special_tokens=True)
    unturned = final(subject, SteerState(PROMPT, (), Sampling(14, temperature=0.0))).teacher
    teacher = subject.teacher.teacher.decoder.model
    assert PROMPT + unturned == decode(teacher.generate(ids, **options)[0], skip_special_tokens=True)


def test_two_users_at_once_do_not_see_each_other(subject):
    concept, sampling = strongest(subject), Sampling(12, seed=1)
    states = [SteerState(PROMPT, (ConceptEdit(concept, "set", value),), sampling) for value in (20.0, -20.0, 0.0)]
    alone = [final(subject, state) for state in states]
    together = [None] * len(states)

    def work(place):
        together[place] = final(subject, states[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(states))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_closing_stops_the_work_and_frees_the_model(subject, monkeypatch):
    calls = 0
    forward = type(subject.model).forward

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(subject.model), "forward", counted)
    texts = steer(subject, SteerState(PROMPT, (), Sampling(30)))
    for _ in range(4):
        next(texts)
    texts.close()
    assert calls == 2 * 3
    assert not subject.lock.locked()


def test_what_the_context_cannot_hold_is_refused_in_words(subject):
    for prompt, says in (
        ("", "text is empty"),
        ("the " * 40, rf"{CONTEXT} (tokens|at most)"),
        ("x" * 9000, "9,000 characters"),
    ):
        with pytest.raises(CoCoMixError, match=says):
            next(steer(subject, SteerState(prompt, (), Sampling(10))))


def test_without_a_teacher_there_is_no_third_text(bare):
    assert "not at hand" in bare.teacher
    assert final(bare, SteerState(PROMPT, (), Sampling(3))).teacher is None


def test_numbers_from_the_page(subject):
    assert make_edit(subject, 3.0, "add", 2) == ConceptEdit(3, "add", 2.0)
    assert make_sampling(subject, 20, 0.5, None, 1.0) == Sampling(20, 0.5, None, 1)
    assert make_sampling(subject, subject.limits.new_tokens, 0, 0, 0).top_k is None


def test_limits_take_the_context_into_account(subject):
    assert (subject.limits.tokens, subject.limits.new_tokens) == (CONTEXT, CONTEXT // 2)
    assert LIMITS.within(100_000) == LIMITS
    with pytest.raises(CoCoMixError, match=str(CONTEXT // 2)):
        make_sampling(subject, CONTEXT // 2 + 1, 0.8, 50, 0)
    tight = replace(subject, limits=replace(subject.limits, tokens=20))  # less than the model's context
    length = tight.encode(PROMPT).shape[1]
    assert final(tight, SteerState(PROMPT, (), Sampling(20 - length, 0.0))).tokens == 20 - length
    with pytest.raises(CoCoMixError, match="20"):
        next(steer(tight, SteerState(PROMPT, (), Sampling(21 - length, 0.0))))
