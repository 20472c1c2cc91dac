"""The server over real sockets: answers, refusals, one batch of many requests, nobody's data in another's answer."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest

from cora.cli import main
from cora.runs.recommend import recommend
from cora.serving.answers import Answerer, Question
from cora.serving.batching import Limits
from cora.serving.limits import LARGEST_BODY
from tests.serving.conftest import Server


def counted(server: Server, name: str) -> float:
    lines = server("/metrics").body.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def unseen(data: str, user: int) -> list[int]:
    frame = pd.read_csv(data)
    return sorted(set(frame["item_id"]) - set(frame[frame["user_id"] == user]["item_id"]))


@pytest.mark.parametrize("user", [5, 12, "5"])
def test_recommendations_are_those_of_the_command(server: Server, finished: Path, user: Any) -> None:
    reply = server("/recommend", {"user": user, "top": 4, "candidates": 10})
    expected = recommend(finished, str(user), 4, 10)
    assert reply.status == 200 and reply.headers["cache-control"] == "no-store"
    assert reply.body["user"] == user and reply.body["known"] and reply.body["delta"]
    assert reply.body["history"] == expected.history
    found = pd.DataFrame(reply.body["items"]).rename(columns={"item": "item_id"})
    pd.testing.assert_frame_equal(found, expected.table, rtol=1e-5, check_like=True)


def test_scores_are_those_of_the_recommendations(server: Server, settings: dict[str, Any]) -> None:
    items = unseen(settings["data"], 7)
    scores = server("/score", {"user": 7, "items": items}).body["items"]
    ranked = server("/recommend", {"user": 7, "top": len(items)}).body["items"]
    assert [one["item"] for one in scores] == items
    by_item = {one["item"]: one["probability"] for one in ranked}
    assert {one["item"]: pytest.approx(one["probability"], abs=1e-5) for one in scores} == by_item
    best = max(scores, key=lambda one: one["score"])
    assert ranked[0]["item"] == best["item"] and ranked[0]["title"] == best["title"] == f"film {best['item']}"


def test_without_its_delta_the_language_model_is_alone(server: Server) -> None:
    items = [3, 4, 5]
    on, off = (server("/score", {"user": 7, "items": items, "delta": delta}).body for delta in (True, False))
    assert on["delta"] and not off["delta"]
    assert [one["score"] for one in on["items"]] != [one["score"] for one in off["items"]]
    recommender = server.answerer._recommender
    asked = recommender.pairs_of([7] * 3, items)
    assert [one["score"] for one in off["items"]] == pytest.approx(recommender.scores(asked, False), abs=1e-5)


def test_users_who_are_unknown_have_the_mean_vector_and_leave_nothing_behind(server: Server) -> None:
    reported = server.answerer._recommender.embeddings._user_rows._reported
    first = server("/recommend", {"user": 777, "top": 3}).body
    assert not first["known"] and first["history"] == [] and len(first["items"]) == 3
    after_one = len(reported)
    again = [server("/recommend", {"user": user, "top": 3}).body for user in (778, -5, 2**63 - 1)]
    assert [one["items"] for one in again] == [first["items"]] * 3 and len(reported) == after_one


def test_many_requests_at_once_are_one_batch_and_each_gets_its_own(server: Server, finished: Path) -> None:
    alone = {user: server("/recommend", {"user": user, "top": 8, "candidates": 8}).body for user in range(16)}
    before = counted(server, "cora_batch_requests_count")
    model, calls = server.answerer._recommender.model, []
    hook = model.base.register_forward_hook(lambda *_: calls.append(1))
    lock = threading.Lock()
    answers = server.answerer.answers

    def ask(number: int) -> None:
        user = number % 16
        reply = server("/recommend", {"user": user, "top": 8, "candidates": 8})
        with lock:
            got = reply.body
            assert reply.status == 200
            assert got["user"] == user and got["history"] == alone[user]["history"]
            assert [one["item"] for one in got["items"]] == [one["item"] for one in alone[user]["items"]]
            for one, other in zip(got["items"], alone[user]["items"], strict=True):
                assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)

    try:
        with ThreadPoolExecutor(16) as clients:
            list(clients.map(ask, range(96)))
        batches = counted(server, "cora_batch_requests_count") - before
        calls.clear()
        answers([Question(user, (1, 2)) for user in range(16)])
    finally:
        hook.remove()
    assert batches <= 48, f"96 requests of 16 clients took {batches} batches"
    assert len(calls) == 1  # 16 users with two prompts each: one forward


def test_questions_of_all_kinds_are_answered_as_alone(answerer: Answerer) -> None:
    questions = [
        Question(3, (1, 2, 3)),
        Question(4, top=3, candidates=9),
        Question(3, (1, 2), adapted=False),
        Question(99, top=2, candidates=5),
        Question(4, top=5, candidates=6, adapted=False),
        Question(3, (1, 1)),
    ]
    for question, answer in zip(questions, answerer.answers(questions), strict=True):
        (alone,) = answerer.answers([question])
        assert answer.known == alone.known and answer.history == alone.history
        pd.testing.assert_frame_equal(
            answer.table.reset_index(drop=True), alone.table.reset_index(drop=True), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/score", {"user": 1, "items": [1, 12345]}, 404, "items: the run knows no item 12345"),
        ("/score", {"user": "ann", "items": [1]}, 422, "user: expected a whole number, as the data's ids are, got"),
        ("/score", {"user": 1, "items": ["1.5"]}, 422, "items: expected a whole number, as the data's ids are, got"),
        ("/score", {"user": 1, "items": []}, 422, "items: List should have at least 1 item"),
        ("/score", {"user": 1, "items": [1] * 1001}, 422, "items: List should have at most 1000 items"),
        ("/score", {"user": 1}, 422, "items: Field required"),
        ("/score", {"user": 1, "items": [1], "template": "/etc/passwd"}, 422, "template: Extra inputs"),
        ("/score", {"user": True, "items": [1]}, 422, "user"),
        ("/score", {"user": 2**63, "items": [1]}, 422, "user"),
        ("/score", {"user": "x" * 300, "items": [1]}, 422, "user"),
        ("/score", {"user": {"__reduce__": 1}, "items": [1]}, 422, "user"),
        ("/recommend", {"user": 1, "top": 5, "candidates": 4}, 422, "top, candidates: expected top <= candidates, got"),
        ("/recommend", {"user": 1, "top": 0}, 422, "top: Input should be greater than or equal to 1"),
        ("/recommend", {"user": 1, "delta": "yes"}, 422, "delta: Input should be a valid boolean"),
        ("/recommend", b"{", 422, "body: JSON decode error"),
        ("/recommend", b"\x80\x04]", 400, "There was an error parsing the body"),
        ("/recommend", b'{"user": "\\ud800"}', 422, "user"),
        ("/recommend", b'{"user": NaN}', 422, "user"),
        ("/recommend", b'{"user": 1' + b"0" * 9000 + b"}", 400, "There was an error parsing the body"),
        ("/recommend", b"[" * 60000, 400, "There was an error parsing the body"),
        ("/recommend", b" " * (LARGEST_BODY + 1), 413, f"body: expected at most {LARGEST_BODY} bytes"),
        ("/recommend", b" " * 5_000_000, 413, f"body: expected at most {LARGEST_BODY} bytes"),
        ("/score/../../etc/passwd", None, 404, "Not Found"),
        ("/docs", None, 404, "Not Found"),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(server: Server, path: str, body: Any, status: int, detail: str) -> None:
    reply = server(path, body)
    assert reply.status == status and reply.body["detail"].startswith(detail) and len(reply.body["detail"]) <= 300
    assert list(reply.body) == ["detail"]


def test_a_run_without_a_language_model_has_none_to_be_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answerer, "has_language_model", False)
    for path, body in (("/score", {"user": 1, "items": [1]}), ("/recommend", {"user": 1})):
        reply = server(path, body | {"delta": False})
        assert reply.status == 422 and reply.body["detail"] == "delta: a run of cora has no language model to be alone"
        assert server(path, body).status == 200


def test_a_body_without_a_length_is_measured_too(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request("POST", "/score", iter([b"1" * 1000] * 100), encode_chunked=True, headers=CHUNKED)
    reply = connection.getresponse()
    assert reply.status == 413 and json.loads(reply.read())["detail"].startswith("body: expected at most")


CHUNKED = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}


def test_a_body_of_a_terabyte_is_refused_unread(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=10) as connection:
        begun = time.monotonic()
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert time.monotonic() - begun < 2


def test_a_body_that_does_not_come_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cora.serving.limits._SLOWEST_BODY", 0.1)
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=10) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue_answers_everybody(serving: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serving(Limits(queue=2, prompts=4))
    with ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(lambda n: server("/score", {"user": n % 16, "items": [1, 2, 3]}), range(48)))
    assert {one.status for one in replies} == {200, 503}
    for reply in replies:
        if reply.status == 503:
            assert int(reply.headers["retry-after"]) >= 1 and reply.body == {"detail": "too many requests wait"}
    assert counted(server, 'cora_refused_total{reason="full"}') == sum(one.status == 503 for one in replies)
    assert counted(server, 'cora_requests_total{route="/score"') == 48


def test_a_deadline_is_a_503(serving: Callable[..., Server]) -> None:
    reply = serving(Limits(deadline=0.001))("/recommend", {"user": 1})
    assert reply.status == 503 and "retry-after" in reply.headers
    assert reply.body == {"detail": "there was no answer within 0.001 seconds"}


def test_health_and_metrics(server: Server) -> None:
    assert server("/health").body == {"status": "ok", "method": "cora", "waiting": 0}
    server("/nowhere/at/all")
    reply = server("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'cora_requests_total{route="none",status="404"}' in reply.body and "nowhere" not in reply.body
    assert "# TYPE cora_request_seconds histogram" in reply.body and "cora_waiting_requests 0.0" in reply.body


def test_openapi_names_every_answer(server: Server) -> None:
    described = server("/openapi.json").body
    assert set(described["paths"]) == {"/score", "/recommend", "/health", "/metrics"}
    assert set(described["paths"]["/score"]["post"]["responses"]) == {"200", "400", "404", "408", "413", "422", "503"}
    assert "HTTPValidationError" not in json.dumps(described)


def test_a_user_who_has_rated_everything_is_recommended_nothing(answerer: Answerer) -> None:
    recommender = answerer._recommender
    frame = recommender.frame
    some = [Question(user, candidates=5) for user in frame["user_id"].unique().tolist()[:2]]
    items = recommender._items
    try:
        recommender._items = frame[frame["user_id"] == some[0].user]["item_id"].unique()
        first, second = answerer.answers(some)
        (alone,) = answerer.answers(some[:1])
    finally:
        recommender._items = items
    assert first.table.empty and alone.table.empty and not second.table.empty


def test_the_command_serves_and_answers_what_waits_before_it_ends(finished: Path) -> None:
    slow = (
        "import sys, time; from cora.cli import main; from cora.serving.answers import Answerer\n"
        "answers = Answerer.answers\n"
        "Answerer.answers = lambda self, some: (time.sleep(0.5), answers(self, some))[1]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    given = ["serve", "--run", str(finished), "--port", "0", "--batch-prompts", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = next(line for line in process.stdout if line.startswith("serving")).split()[-1]
        with ThreadPoolExecutor(3) as clients:
            asked = Server(url, None)  # type: ignore[arg-type]
            while True:
                try:
                    assert asked("/health").status == 200
                    break
                except OSError:
                    time.sleep(0.05)
            replies = [clients.submit(asked, "/score", {"user": n, "items": [1]}) for n in range(3)]
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert [one.result().status for one in replies] == [200, 200, 200]
        process.wait(20)
        with pytest.raises(OSError):
            asked("/health")
    finally:
        process.kill()
        process.communicate()


def test_errors_of_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--run", str(tmp_path), "--port", "0"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert main(["serve", "--run", str(finished), "--queue", "0"]) == 2
    assert "queue: expected a positive number, got 0" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--run", str(finished), "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err
