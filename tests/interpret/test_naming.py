import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cocomix.interpret.atlas_cards import Context
from cocomix.interpret.naming import API_KEY_VARIABLE, NameEndpoint
from cocomix.runtime.errors import CoCoMixError

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
        assert (
            endpoint.name(["list", "of"], [Context("the", " list", " of", 1.0, 1.0, "validation", 0, 1)])
            == "Lists and items"
        )
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
            pytest.raises(CoCoMixError, match="gave no answer"),
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
