import pytest
import torch

from cocomix.interpret.steering import FACTOR_LIMIT, Sampling, continue_tokens, generate, parse_steer, steering
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.evaluation.conftest import CONCEPTS
from tests.model.factories import VOCAB, student, tokens

MIXED = ["interleave", "residual", "add"]


@pytest.mark.parametrize(
    ("text", "concept", "factor"),
    [("412=5", 412, 5.0), (" 0 = -2.5 ", 0, -2.5), ("7=1e1", 7, 10.0), (f"7={FACTOR_LIMIT}", 7, FACTOR_LIMIT)],
)
def test_parse_steer(text, concept, factor):
    assert parse_steer(text) == ConceptEdit(concept, "scale", factor)


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("412+3", ConceptEdit(412, "add", 3.0)),
        ("412-3.5", ConceptEdit(412, "add", -3.5)),
        ("412:=8", ConceptEdit(412, "set", 8.0)),
        ("412:=-8", ConceptEdit(412, "set", -8.0)),
        ("412:ban", ConceptEdit(412, "ban", 0.0)),
        ("412=5@20", ConceptEdit(412, "scale", 5.0, start=20)),
        (" 412 : ban @ 3 ", ConceptEdit(412, "ban", 0.0, start=3)),
    ],
)
def test_parse_steer_reads_every_operation_and_a_start(text, edit):
    assert parse_steer(text) == edit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5:3",
        "5:bann",
        "5=2@",
        "5=2@-1",
        "5=2@x",
        "5:ban=3",
        "=3",
        "a=3",
        "3=",
        "3=x",
        "-1=2",
        "1=2=3",
        "1.5=2",
    ],
)
def test_parse_steer_refuses_other_forms(text):
    with pytest.raises(CoCoMixError, match="write ID=FACTOR"):
        parse_steer(text)


@pytest.mark.parametrize("factor", ["nan", "inf", "-inf", "100.5", "-1e9", "1e999"])
def test_parse_steer_refuses_huge_factors_and_states_the_limit(factor):
    with pytest.raises(CoCoMixError, match="between -100 and 100"):
        parse_steer(f"3={factor}")


def greedy(world, model, prompt="list of", **changes):
    return generate(model, world.tokenizer, prompt, **{"max_new_tokens": 6, "temperature": 0.0, **changes})


@pytest.mark.parametrize("mixing", MIXED)
def test_a_neutral_edit_changes_nothing_and_a_strong_one_does(world, mixing):
    model = world.student(mixing)
    ids = torch.tensor([world.tokenizer.encode("list of")])
    with torch.no_grad():
        concept = int(model(input_ids=ids).concept_ids[0, -1, 0])
    plain = greedy(world, model)
    assert greedy(world, model, edits=[ConceptEdit(concept, "scale", 1.0)]) == plain
    assert greedy(world, model, edits=[ConceptEdit(concept, "scale", 60.0)]) != plain


def test_steered_generation_equals_steering_every_step_without_cache(world):
    model = world.student()
    ids = torch.tensor([world.tokenizer.encode("list of")])
    start = ids.shape[1]
    edits = [ConceptEdit(2, "set", 9.0), ConceptEdit(5, "ban")]
    with torch.no_grad():
        for _ in range(6):
            best = model(input_ids=ids, concept_edits=edits, use_cache=False).logits[:, -1:].argmax(-1)
            if int(best) == world.tokenizer.eos_token_id:
                break
            ids = torch.cat((ids, best), dim=1)
    expected = world.tokenizer.decode(ids[0])
    assert start < ids.shape[1]
    assert "list of" + greedy(world, model, edits=edits)[0] == expected


def test_sampling_is_decided_by_the_seed_and_leaves_the_random_state(world):
    model = world.student()

    def sample(seed):
        return generate(
            model, world.tokenizer, "list of", max_new_tokens=6, seed=seed, num_return_sequences=3, top_k=None
        )

    torch.manual_seed(11)
    state = torch.get_rng_state()
    texts = sample(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(texts) == 3
    assert len(set(texts)) > 1
    assert sample(1) == texts
    assert sample(2) != texts


def test_several_prompts_with_edits_of_their_rows_equal_one_by_one(world):
    model, prompts = world.student(), ["list of", "the", "a string"]
    edits = [ConceptEdit(2, "set", 9.0, start=1), ConceptEdit(5, "set", 12.0, rows=(1,))]
    together = greedy(world, model, prompt=prompts, edits=edits)
    alone = [
        greedy(world, model, prompt=prompt, edits=[ConceptEdit(2, "set", 9.0, start=1), *extra])[0]
        for prompt, extra in zip(prompts, ([], [ConceptEdit(5, "set", 12.0)], []), strict=True)
    ]
    assert together == alone
    assert alone[1] != greedy(world, model, prompt="the", edits=edits[:1])[0]


def test_samples_of_several_prompts_come_prompt_by_prompt(world):
    settings = {"temperature": 1.0, "num_return_sequences": 3}
    steered = [ConceptEdit(5, "set", 60.0, rows=(1,))]
    plain = greedy(world, world.student(), prompt=["list of", "the"], **settings)
    found = greedy(world, world.student(), prompt=["list of", "the"], edits=steered, **settings)
    assert len(found) == 6
    assert found[:3] == plain[:3]
    assert found[3:] != plain[3:]


def test_steering_holds_within_its_block(world):
    model, edits = world.student(), [ConceptEdit(2, "set", 9.0)]
    plain, expected = greedy(world, model), greedy(world, model, edits=edits)
    with steering(model, edits) as steered:
        assert steered is model
        assert greedy(world, model) == expected != plain
        with pytest.raises(CoCoMixError, match="text is empty"), steering(model, [ConceptEdit(3, "ban")]):
            greedy(world, model, prompt="")
        assert greedy(world, model) == expected
    assert greedy(world, model) == plain


def test_steering_refuses_before_anything_runs(world):
    for model, edit, message in (
        (world.plain(), ConceptEdit(0), "has no concepts"),
        (world.student("none"), ConceptEdit(0), "mixes none in"),
        (world.student(), ConceptEdit(CONCEPTS), "does not exist"),
        (world.student(), ConceptEdit(0, "add", 101.0), "is too large"),
    ):
        with pytest.raises(CoCoMixError, match=message), steering(model, [edit]):
            pytest.fail("the block ran")


def test_plain_models_generate_without_edits_and_refuse_them(world):
    model = world.plain()
    assert len(generate(model, world.tokenizer, "list of", max_new_tokens=4)) == 1
    with pytest.raises(CoCoMixError, match="has no concepts"):
        generate(model, world.tokenizer, "list of", max_new_tokens=4, edits=[ConceptEdit(0)])


def test_a_character_across_the_border_of_prompt_and_continuation_is_kept(world):
    """The tokenizer splits é into two bytes; a prompt that ends inside it must not lose the rest."""
    model, tokenizer = world.plain(), world.tokenizer
    text = generate(model, tokenizer, "café", max_new_tokens=3, temperature=0.0)[0]
    ids = torch.tensor([tokenizer.encode("café")])
    sequence = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert "café" + text == tokenizer.decode(sequence[0], skip_special_tokens=True)


def test_generation_refusals(world):
    model, tokenizer = world.student(), world.tokenizer

    def run(prompt="list of", model=model, **changes):
        generate(model, tokenizer, prompt, **{"max_new_tokens": 4, **changes})

    for prompt, message in (("", "text is empty"), (["list", " "], "text is empty"), ([], "no text to continue")):
        with pytest.raises(CoCoMixError, match=message):
            run(prompt)
    with pytest.raises(CoCoMixError, match=r"row 1.* 0 to 0"):
        run(edits=[ConceptEdit(0, "set", 1.0, rows=(1,))])
    length = len(tokenizer.encode("list of"))
    message = f"text has {length} tokens and 40 more are to be generated, .* context is 16 .*--max-new-tokens"
    with pytest.raises(CoCoMixError, match=message):
        run(max_new_tokens=40)
    with pytest.raises(CoCoMixError, match=f"concept {CONCEPTS} does not exist: .* 0 to {CONCEPTS - 1}"):
        run(edits=[ConceptEdit(CONCEPTS)])
    with pytest.raises(CoCoMixError, match="-100 and 100"):
        run(edits=[ConceptEdit(0, "add", 1e6)])
    with pytest.raises(CoCoMixError, match="mixes none in"):
        run(model=world.student("none"), edits=[ConceptEdit(0)])
    for changes, message in (
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"num_return_sequences": 0}, "num_return_sequences=0"),
        ({"num_return_sequences": 2, "temperature": 0.0}, "same text 2 times"),
    ):
        with pytest.raises(CoCoMixError, match=message):
            run(**changes)


# --- continuing tokens ------------------------------------------------------------------------------------------------


def sample(**changes):
    sampling = Sampling(12, top_k=None, num_return_sequences=changes.pop("num_return_sequences", 1))
    return continue_tokens(student("gpt2"), list(tokens(4, 5)), sampling, **{"end": 0, **changes})


def test_texts_that_do_not_stop_are_equally_long_and_hold_no_end():
    stopping = sample(num_return_sequences=20)
    assert (stopping[:, 5:] == 0).any()
    lasting = sample(num_return_sequences=20, stop_at_end=False)
    assert lasting.shape == (80, 17)
    assert (lasting[:, 5:] != 0).all()


def test_tokens_beyond_the_vocabulary_are_not_drawn():
    assert int(sample()[:, 5:].max()) > 20
    assert int(sample(vocab_size=20)[:, 5:].max()) < 20
    assert torch.equal(sample(vocab_size=VOCAB), sample())


def test_the_result_can_be_differentiated_through():
    """Texts made in inference mode are read by a teacher that takes gradients."""
    embedding = torch.nn.Embedding(VOCAB, 3)
    embedding(sample()).sum().backward()
    assert embedding.weight.grad is not None


def test_edits_of_a_row_that_is_not_there_are_refused():
    with pytest.raises(CoCoMixError, match="names row 4"):
        sample(edits=[ConceptEdit(0, "set", 1.0, rows=(4,))])
