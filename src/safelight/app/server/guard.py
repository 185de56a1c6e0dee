"""Who may come in. A server on one's own machine is asked by every page that its browser shows, so that it listens to

* its own names alone: `Host` must be one of them, whatever a stranger's domain resolves to (DNS rebinding);
* its own page alone: what other pages send is told by `Origin` and `Sec-Fetch-Site` (cross-site requests), and whoever
  sends neither is no browser;
* JSON alone, of a length told beforehand: no form of another page can send that;
* those who know the token, if there is one: beyond this machine there must be.
"""

import base64
import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "safelight"
OWN_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_TO_ALL = ("0.0.0.0", "::", "")  # addresses to listen at that are no names: any name may mean this machine
PUBLIC = ("/", "/health", "/api/login")  # asked without a token; so is the page's own folder
MOST_BYTES = 64 * 1024 * 1024  # of a body
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Stands before an ASGI application. `host` is the address that the server listens at; `token` may be None."""

    def __init__(self, app: App, *, host: str, token: str | None, names: Sequence[str] = ()) -> None:
        self.app, self.token = app, token
        self.names = None if host in OPEN_TO_ALL and not names else {*OWN_NAMES, host, *names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what is wrong, or let the request in."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if (refusal := self.refusal(scope["method"], scope["path"], headers)) is not None:
            status, what, remedy = refusal
            await _answer(send, status, what, remedy)
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self.app(scope, receive, sending)

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """The status, what is wrong and what to do, of a request that is not let in; None of one that is."""
        host = headers.get("host", "")
        if self.names is not None and _name(host) not in self.names:
            return 403, f"this server is not called {host[:80]!r}", "use the address that it printed when it started"
        if not _same_origin(headers, host) and not (method == "GET" and path == "/"):
            return 403, "asked by a page of another site", "use the server's own page, or a program"
        if method not in ("GET", "HEAD"):
            if (length := headers.get("content-length", "0" if method == "DELETE" else "")) and not length.isdecimal():
                return 400, "content-length is no number", "tell the body's length in bytes"
            if not length:
                return 411, "the body's length is not told", "send content-length"
            if int(length) > MOST_BYTES:
                return 413, f"the body has {length} bytes", f"{MOST_BYTES} at most: send smaller pictures"
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if int(length) and kind != "application/json":
                return 415, f"content-type is {kind[:80]!r}", "send application/json"
        if self.token is not None and path not in PUBLIC and not path.startswith("/page/") and not self.knows(headers):
            return 401, "this server asks for its token", "send Authorization: Bearer TOKEN, or sign in on its page"
        return None

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether a request tells the token: as a bearer's, as a password of whoever's, or as the page's cookie."""
        scheme, _, told = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":  # as clients of A1111's --api-auth have it
            told = _password(told)
        elif scheme.lower() != "bearer":
            try:
                cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            except CookieError:
                cookie = None
            told = cookie.value if cookie else ""
        return self.token is not None and hmac.compare_digest(told.strip().encode(), self.token.encode())


def _password(told: str) -> str:
    try:
        return base64.b64decode(told.strip(), validate=True).decode().partition(":")[2]
    except ValueError:  # which bad base64 and bad UTF-8 both are
        return ""


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(headers: dict[str, str], host: str) -> bool:
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return False
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")


async def _answer(send: Send, status: int, what: str, remedy: str) -> None:
    import json

    body = json.dumps({"error": {"what": what, "remedy": remedy}}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
