import logging
import socket
import sys

import httpx
import pytest

from cocomix.explorer import serve, serving
from cocomix.explorer.server import PASSWORD_VARIABLE
from cocomix.runtime.errors import CoCoMixError
from tests.explorer.conftest import free_port


def test_a_port_in_use(subject):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CoCoMixError, match="Address already in use"):
            serve(subject, port=taken.getsockname()[1])
    with pytest.raises(CoCoMixError, match="--port"):
        serve(subject, host="203.0.113.7", port=free_port())


def test_with_a_password_nothing_is_shown_before_it(subject):
    with (
        serving(subject, port=free_port(), password="open sesame") as address,
        httpx.Client(base_url=address) as client,
    ):
        assert subject.run.manifest.name not in client.get("/").text
        assert client.get("/config").status_code == 401
        for wrong in ({"username": "cocomix", "password": "open"}, {"username": "me", "password": "open sesame"}):
            assert client.post("/login", data=wrong).status_code == 400
        assert client.post("/login", data={"username": "cocomix", "password": "open sesame"}).status_code == 200
        assert client.get("/config").status_code == 200


def test_the_server_takes_no_files_and_offers_no_api(address):
    with httpx.Client(base_url=address) as client:
        sent = client.post("/gradio_api/upload", files={"files": ("x.txt", b"more than a byte")})
        assert sent.status_code >= 400
        assert client.get("/gradio_api/info").json()["named_endpoints"] == {}
        page = client.get("/").text
    assert '"analytics_enabled":false' in page.replace(" ", "")


def test_the_verb(cli, roomy, monkeypatch, tmp_path):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    cli.refuses("explore", roomy.ntp_run, says="has no concepts")
    cli.refuses("explore", roomy.cocomix_run, "--host", "0.0.0.0", says="a password is needed")
    cli.refuses("explore", roomy.cocomix_run, "--atlas", tmp_path, says=str(tmp_path))
    cli.refuses("explore", tmp_path / "none", says="does not exist")
    (tmp_path / "password").write_text(" \n")
    cli.refuses("explore", roomy.cocomix_run, "--password-file", tmp_path / "password", says="password of 0")
    served = {}
    monkeypatch.setattr("cocomix.explorer.serve", lambda subject, **options: served.update(subject=subject, **options))
    cli("explore", roomy.cocomix_run, "--compare", roomy.ntp_run, "--port", 8001, "--allowed-host", "lab")
    assert (served["host"], served["port"], served["password"]) == ("127.0.0.1", 8001, None)
    assert served["allowed_hosts"] == ["lab"]
    assert served["subject"].comparison.baseline == "plain"


def test_without_gradio_the_verb_says_what_to_install(cli, roomy, monkeypatch):
    monkeypatch.setattr("cocomix.runtime.errors.find_spec", lambda name: None)
    cli.refuses("explore", roomy.cocomix_run, says="pip install 'cocomix[explorer]'")


def test_ctrl_c_ends_it(subject, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "cocomix")

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    port = free_port()
    real = sys.modules["threading"].Event

    class Event(real):
        wait = interrupted

    monkeypatch.setattr("cocomix.explorer.server.Event", Event)
    serve(subject, port=port)
    assert caplog.messages[0].endswith(f"http://127.0.0.1:{port}/; Ctrl-C ends it.")
    assert caplog.messages[-1] == "the explorer has ended."
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")
