"""What is said of a request before it is parsed: its size, the time it takes to come; and the headers of its answer."""

import asyncio
import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 65_536  # bytes: a thousand ids of 64
_SLOWEST_BODY = 10.0  # seconds
# Of a body that is too large so many bytes are read and dropped: who is still writing does not read the answer.
_DROPPED = 2**24

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Limited:
    """The app behind it gets bodies that are whole and at most LARGEST_BODY bytes; larger ones are answered with 413,
    those that do not come in time with 408. observe: told route, status and seconds of every answer."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None]) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 500

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            problem, body = await self._read(scope, receive)
            if problem:
                await _refuse(problem, answered)
            else:
                await self._app(scope, _Replayed(body, receive), answered)
        finally:
            self._observe(_route(scope), status, time.monotonic() - begun)

    async def _read(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        """The status of what is wrong with the body, or 0; and the body."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        said = int(length[:20]) if length.isdigit() else 0
        if said > _DROPPED or (said > LARGEST_BODY and b"expect" in headers):
            return 413, b""
        body, size = b"", 0
        until = time.monotonic() + _SLOWEST_BODY
        while True:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                return 408, b""
            size += len(message.get("body", b""))
            body = body + message.get("body", b"") if size <= LARGEST_BODY else b""
            if size > _DROPPED or not message.get("more_body", False):
                return (413 if size > LARGEST_BODY else 0), body


class _Replayed:
    """A body that was read, as an app receives it; behind it whatever else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _refuse(status: int, send: Send) -> None:
    detail = {
        408: f"body: it did not come within {_SLOWEST_BODY:g} seconds",
        413: f"body: expected at most {LARGEST_BODY} bytes",
    }[status]
    body = json.dumps({"detail": detail}).encode()
    # What is left of the body is not read: the connection ends with this answer.
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """The path of the route that answered: as many names as there are routes, whatever is asked for."""
    return str(getattr(scope.get("route"), "path", "none"))
