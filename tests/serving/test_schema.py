"""Requests that schemathesis makes up from the server's OpenAPI: every answer is described there, no 5xx but 503."""

from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from tests.serving.conftest import Server

# Which ids the data have no schema tells, so what it allows may be refused.
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@pytest.fixture(scope="session")
def described(server: Server) -> Any:
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", ["POST /score", "POST /recommend", "GET /health", "GET /metrics"])
def test_every_answer_is_a_described_one(described: Any, operation: str, mode: GenerationMode) -> None:
    method, path = operation.split()
    if method == "GET" and mode is GenerationMode.NEGATIVE:
        pytest.skip("it takes nothing that could be wrong")
    seen: set[int] = set()

    @settings(max_examples=40 if method == "POST" else 2)
    @given(st.data())
    def ask(data: st.DataObject) -> None:
        case = data.draw(described[path][method].as_strategy(generation_mode=mode))
        reply = case.call()
        seen.add(reply.status_code)
        assert reply.status_code < 500 or reply.status_code == 503, reply.text
        case.validate_response(reply, checks=CHECKS)

    ask()
    assert seen <= {422, 400} if mode is GenerationMode.NEGATIVE else seen & {200, 404, 422}
