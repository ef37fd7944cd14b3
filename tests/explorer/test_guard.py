import re
import socket

import httpx
import pytest

from cocomix.explorer import find_password, serving
from cocomix.explorer.server import PASSWORD_VARIABLE, names_of
from cocomix.runtime.errors import CoCoMixError
from tests.explorer.conftest import free_port

LOOPBACK = ("127.0.0.1", "localhost", "::1", "127.8.8.8")


def test_this_machine_alone_needs_no_password(monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    for host in LOOPBACK:
        assert find_password(host, None) is None
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(CoCoMixError, match=re.escape(host)):
            find_password(host, None)


def test_where_a_password_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    assert find_password("0.0.0.0", None) == "from the environment"
    file = tmp_path / "password"
    file.write_text("from the file\n")
    assert find_password("0.0.0.0", file) == "from the file"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("text", ["", "\n", " \t\n", "short"])
def test_a_password_that_was_asked_for_is_never_left_out(monkeypatch, tmp_path, host, text):
    monkeypatch.setenv(PASSWORD_VARIABLE, "from the environment")
    file = tmp_path / "password"
    file.write_text(text)
    with pytest.raises(CoCoMixError, match=f"{re.escape(str(file))}.*{len(text.strip())}"):
        find_password(host, file)
    monkeypatch.setenv(PASSWORD_VARIABLE, text)
    with pytest.raises(CoCoMixError, match=PASSWORD_VARIABLE):
        find_password(host, None)
    with pytest.raises(CoCoMixError, match="none"):
        find_password(host, tmp_path / "none")


def test_names_a_server_answers_to():
    assert names_of("127.0.0.1") == ["127.0.0.1", "[::1]", "localhost"]
    assert {"[fe80::1]", "lab.example.org", "[2001:db8::2]"} <= set(
        names_of("fe80::1", ["Lab.example.org", "2001:db8::2"])
    )
    assert socket.gethostname().lower() in names_of("0.0.0.0")
    assert "evil.example" not in names_of("0.0.0.0")
    for wrong in ("https://lab.example.org", "lab:8000", "*", "a b", ""):
        with pytest.raises(CoCoMixError, match="--allowed-host"):
            names_of("127.0.0.1", [wrong])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost@evil"])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_a_forged_host_is_refused(address, host, path):
    assert httpx.get(address + path, headers={"Host": host}).status_code == 400


def test_the_hosts_own_names_and_a_proxys_are_answered(address, subject):
    port = httpx.URL(address).port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert httpx.get(address, headers={"Host": host}).status_code == 200
    with serving(subject, port=free_port(), allowed_hosts=["lab.example.org"]) as proxied:
        asked = {"Host": "lab.example.org", "Origin": "https://lab.example.org"}
        assert httpx.get(proxied, headers=asked).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://["])
def test_another_sites_page_may_not_ask(address, origin):
    answer = httpx.post(f"{address}gradio_api/queue/join", json={}, headers={"Origin": origin})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("path", ["", "config", "theme.css", "nothing-here"])
def test_every_answer_fences_the_page_in(address, path):
    headers = httpx.get(address + path).headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["frame-ancestors"] == policy["default-src"] == "'none'"
    assert policy["connect-src"] == policy["form-action"] == "'self'"
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "http" not in headers["content-security-policy"]
