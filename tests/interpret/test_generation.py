import pytest
import torch

from cocomix.interpret.generation import continue_tokens
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import VOCAB, student, tokens


def sample(**changes):
    settings = {"end": 0, "max_new_tokens": 12, "top_k": None, **changes}
    return continue_tokens(student("gpt2"), tokens(4, 5), torch.ones(4, 5, dtype=torch.long), **settings)


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
