"""The guard: what another site's page can send is refused, whatever it asks for."""

import itertools
from base64 import b64encode

import pytest

from safelight.app.server.guard import MOST_BYTES, Guard

JSON = {"content-type": "application/json", "content-length": "2"}


async def nothing(scope, receive, send):
    raise AssertionError("let in")


def guard(host="127.0.0.1", token=None, names=()):
    return Guard(nothing, host=host, token=token, names=names)


def status(method="GET", path="/api/jobs", of=None, **headers):
    headers = {"host": "localhost:7878"} | {name.replace("_", "-"): value for name, value in headers.items()}
    refused = (of or guard()).refusal(method, path, headers)
    return 200 if refused is None else refused[0]


def test_what_ordinary_programs_and_the_own_page_send_is_let_in():
    assert status() == 200
    assert status("POST", **JSON) == 200
    assert status("POST", content_type="application/json; charset=utf-8", content_length="9") == 200
    assert status("DELETE", "/api/jobs/1") == 200
    assert status("POST", origin="http://localhost:7878", sec_fetch_site="same-origin", **JSON) == 200
    assert status(path="/", sec_fetch_site="none") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7878", "localhost", "LOCALHOST:1", "[::1]:7878"])
def test_own_names_are_known(host):
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "[::1",
        "localhost@evil.example",
        "10.0.0.7:7878",
    ],
)
def test_other_names_are_not(host):
    assert status(host=host) == 403


def test_other_sites_are_refused_in_every_way_they_ask():
    origins = ("http://evil.example", "null", "https://localhost:7878.evil.example", "http://localhost:9999", "file://")
    sites = ("cross-site", "same-site")
    for method, path in itertools.product(
        ("GET", "POST", "DELETE", "PUT"), ("/api/jobs", "/api/tasks/inpaint", "/pictures/a.png")
    ):
        for origin in origins:
            assert status(method, path, origin=origin, **JSON) == 403, (method, path, origin)
        for site in sites:
            assert status(method, path, sec_fetch_site=site, **JSON) == 403, (method, path, site)
    assert status(path="/", sec_fetch_site="cross-site") == 200  # a link to the page is no harm


def test_bodies_are_json_of_a_known_length():
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert status("POST", content_type=kind, content_length="9") == 415
    assert status("POST", content_type="application/json") == 411
    assert status("POST", content_type="application/json", content_length="many") == 400
    assert status("POST", content_type="application/json", content_length="-1") == 400
    assert status("POST", content_type="application/json", content_length=str(MOST_BYTES + 1)) == 413


def test_without_the_token_only_the_page_and_the_health_are_there():
    of = guard(token="secret")
    for path in ("/api/jobs", "/api/tasks", "/pictures/a.png", "/openapi.json", "/api/events", "/page"):
        assert status(path=path, of=of) == 401
        assert status(path=path, of=of, authorization="Bearer wrong") == 401
        assert status(path=path, of=of, authorization="Basic secret") == 401
        assert status(path=path, of=of, authorization="bearer secret") == 200
        assert status(path=path, of=of, authorization="Basic " + b64encode(b"anyone:secret").decode()) == 200
        assert status(path=path, of=of, authorization="Basic " + b64encode(b"secret:wrong").decode()) == 401
        assert status(path=path, of=of, authorization="Basic %%%") == 401
        assert status(path=path, of=of, cookie="a=b; safelight=secret") == 200
        assert status(path=path, of=of, cookie="safelight=secre") == 401
    for path in ("/", "/health", "/page/main.js"):
        assert status(path=path, of=of) == 200
    assert status("POST", "/api/login", of=of, **JSON) == 200


def test_a_server_for_others_is_asked_by_any_name_or_by_those_it_is_given():
    assert status(host="studio.local:7878", of=guard("0.0.0.0", "t"), authorization="Bearer t") == 200
    named = guard("0.0.0.0", "t", ("studio.local",))
    assert status(host="studio.local:7878", of=named, authorization="Bearer t") == 200
    assert status(host="evil.example", of=named, authorization="Bearer t") == 403
