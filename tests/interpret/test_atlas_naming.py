import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cocomix.interpret.atlas_naming import API_KEY_VARIABLE, NameEndpoint, count_words, name_of, typical_words
from cocomix.interpret.atlas_store import Cut, cut
from cocomix.runtime.errors import CoCoMixError

CUTS = [
    Cut("x the Lists of", " it", "ems in a box y"),
    Cut("x the", " items", " of lists in y"),
    Cut("x", " (", "a, lists) y"),
]


def test_words_near_a_token_and_words_that_hold_it():
    found = count_words(CUTS)
    assert found["items"] == (0, 2)  # a part of a word stands for the word
    assert found["lists"] == (3, 0)
    assert found["the"] == (2, 0)
    assert found["("] == (0, 1)  # no word: the token itself
    assert "x" not in found  # the border may have cut them
    assert "y" not in found


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (Cut("", "", ""), {}),
        (Cut("a ", "\ufffd", ""), {}),
        (Cut("of ", "\n", "the"), {"↵": (0, 1)}),
        (Cut("naïve ca", "fé", " "), {"café": (0, 1)}),
        (Cut(" the " + "x" * 40, " of", " "), {"of": (0, 1), "the": (1, 0)}),
        (Cut(" 1 2 3 4 5 6 7 8 ", "z", " "), {"z": (0, 1)} | {str(n): (1, 0) for n in range(3, 9)}),
    ],
)
def test_words_of_odd_contexts(context, words):
    assert count_words([context]) == words


def test_typical_words_are_rare_elsewhere_and_frequent_here():
    words = {"the": (9, 0), "list": (4, 1), "box": (2, 0), "once": (1, 0), "of": (0, 2)}
    concepts_with = {"the": 100, "list": 10, "box": 2, "once": 1, "of": 90}
    # weights: list 4·2.31 + 3·3.31 = 19.2, box 2·3.92 = 7.8, of 6·1.12 = 6.7, the 9·0.01; `once` is chance
    assert typical_words(words, concepts_with, 100, 5) == ["list", "box", "of", "the"]
    assert typical_words(words, concepts_with, 100, 2) == ["list", "box"]
    assert typical_words({"once": (1, 0), "own": (0, 1)}, {"once": 1, "own": 9}, 100, 5) == ["own", "once"]
    assert typical_words({"b": (2, 0), "a": (2, 0)}, {"a": 1, "b": 1}, 5, 5) == ["a", "b"]


def test_names():
    assert name_of(7, ["list", "box", "of", "the"]) == "list, box, of"
    assert name_of(7, []) == "concept 7 (not seen)"


def test_a_cut_reads_as_the_block_does(world):
    tokens = world.tokenizer.encode("the list of café items")
    whole = world.tokenizer.decode(tokens)
    for position in range(len(tokens)):
        before, token, after = cut(world.tokenizer, tokens, position, 50)
        assert before + token + after == whole
        assert cut(world.tokenizer, tokens, position, 0).after == ""
    smile = world.tokenizer.encode("a 🙂 b")  # several tokens, none of them a whole character
    parts = [cut(world.tokenizer, smile, position, 0).token for position in range(len(smile))]
    assert parts[0] == "a"
    assert "\ufffd" in parts


# --- endpoint ---------------------------------------------------------------------------------------------------------

Answer = Callable[[dict], tuple[int, bytes, dict[str, str]]]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[tuple[str, dict, dict]]]]:
    """A local endpoint; yields its address and what it was asked: (path, headers, body)."""
    asked: list[tuple[str, dict, dict]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            status, content, headers = answer(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/v1", asked
        finally:
            running.shutdown()
            thread.join()


def says(content: object) -> Answer:
    return lambda _: (200, json.dumps({"choices": [{"message": {"content": content}}]}).encode(), {})


def test_the_endpoint_is_asked_and_its_answer_cleaned(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    with server(says(' "Lists and   items."\nBecause ...')) as (url, asked):
        endpoint = NameEndpoint(url + "/", model="small")
        assert endpoint.name(["list", "of"], [Cut("the", " list", " of")]) == "Lists and items"
    assert "secret" not in repr(endpoint)
    ((path, headers, body),) = asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "small"
    assert "the<< list>> of" in body["messages"][1]["content"]


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with server(says("x" * 99)) as (url, asked):
        assert NameEndpoint(url).name([], []) == "x" * 60
    assert "Authorization" not in asked[0][1]


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: (500, b"no", {}),
        lambda _: (200, b"<html>", {}),
        lambda _: (200, b'{"choices": []}', {}),
        lambda _: (200, b"[1]", {}),
        says(""),
        says(None),
        says(' "\n'),
    ],
)
def test_no_name_is_said_in_words(answer):
    with server(answer) as (url, _), pytest.raises(CoCoMixError, match="terms"):
        NameEndpoint(url).name([], [])


def test_a_redirect_takes_the_key_nowhere(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    with server(says("elsewhere")) as (other, asked):
        with (
            server(lambda _: (302, b"", {"Location": other + "/chat/completions"})) as (url, _),
            pytest.raises(CoCoMixError, match="gave no name"),
        ):
            NameEndpoint(url).name([], [])
        assert asked == []


def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "hunter2\nX-Other: 1")
    with pytest.raises(CoCoMixError, match=API_KEY_VARIABLE) as caught:
        NameEndpoint("http://127.0.0.1:9/v1").name([], [])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "file:///etc/passwd", "ftp://host/v1", "http://", "http://host/v1?key=x"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(CoCoMixError, match="endpoint"):
        NameEndpoint(url)


def test_addresses_with_a_password_are_refused_without_repeating_it():
    with pytest.raises(CoCoMixError, match=API_KEY_VARIABLE) as caught:
        NameEndpoint("https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(CoCoMixError, match="at least 1"):
        NameEndpoint("http://host/v1", limit=0)
