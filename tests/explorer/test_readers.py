from tests.explorer.readers import read_together


def test_a_hundred_readers_at_once(address, subject):
    """Each opens the page and reads a text of its own; all are answered."""
    found = read_together(address, readers=100)
    assert len(found) == 100
    assert all("is mixed in at" in answer for answer in found)
    assert not subject.lock.locked()
