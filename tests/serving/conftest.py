"""A finished tiny run behind a server of its own on the loopback interface."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from fastapi import FastAPI

from cora.serving.answers import Answerer
from cora.serving.app import create_app
from cora.serving.batching import Limits
from tests.runs.conftest import base_folder, finished, ratings, settings  # noqa: F401


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Server(NamedTuple):
    url: str
    answerer: Answerer

    def __call__(self, path: str, body: Any = None) -> Reply:
        """POST of a body, as JSON unless it is bytes, or GET."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                status, headers, content = found.status, found.headers, found.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, error.headers, error.read()
        is_json = headers.get("content-type", "").startswith("application/json")
        return Reply(status, dict(headers.items()), json.loads(content) if is_json else content.decode())


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def answerer(finished: Path) -> Answerer:  # noqa: F811
    return Answerer(finished)


@pytest.fixture(scope="session")
def server(answerer: Answerer) -> Iterator[Server]:
    with running(create_app(answerer, Limits())) as url:
        yield Server(url, answerer)


@pytest.fixture
def serving(answerer: Answerer) -> Iterator[Callable[..., Server]]:
    """serving(limits): a server of the test's own."""
    started: list[Any] = []

    def start(limits: Limits) -> Server:
        context = running(create_app(answerer, limits))
        started.append(context)
        return Server(context.__enter__(), answerer)

    yield start
    for context in started:
        context.__exit__(None, None, None)
