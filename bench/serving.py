"""`cora serve` under load on the loopback interface: clients that ask again as soon as they are answered."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from cora.runs.settings import RunConfig
from cora.runs.train import train

CLIENTS = 16


class Question(NamedTuple):
    """What is asked: the path, and the body of the request of each number."""

    path: str
    body: Callable[[int], dict[str, object]]


# What one request of a client is, and how many there are in a round.
QUESTIONS = {
    "one item of a user each": (
        Question("/score", lambda n: {"user": 1 + n * 37 % 943, "items": [1 + n * 61 % 1600]}),
        32,
    ),
    "one item of the same user each": (Question("/score", lambda n: {"user": 196, "items": [1 + n * 61 % 1600]}), 32),
    "the best of 20 items": (Question("/recommend", lambda n: {"user": 1 + n * 37 % 943, "candidates": 20}), 16),
}


@dataclass(frozen=True)
class Load:
    """Seconds that each request of a round took, and that the round took."""

    latencies: np.ndarray
    seconds: float

    @property
    def throughput(self) -> float:
        """Requests answered in a second."""
        return len(self.latencies) / self.seconds


def finished_run(folder: Path) -> Path:
    """A run of SmolLM2-135M on MovieLens-100k that has made one step: what it recommends does not matter here."""
    few = dict(steps=1, valid_rows=50, test_rows=16, eval_every=1)
    cora = dict(max_history=3, offset=True, shared_prefix=True)
    config = RunConfig(data="movielens-100k", model="smollm2-135m", **few, cora=cora)  # type: ignore[arg-type]
    train(config, folder)
    return folder


@contextmanager
def server(run: Path) -> Iterator[str]:
    """The address of a server of the run in a process of its own."""
    command = [sys.executable, "-m", "cora.cli", "serve", "--run", str(run), "--port", "0", "--deadline", "300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = (line for line in process.stdout if line.startswith("serving"))
        yield urlsplit(next(lines).split()[-1]).netloc
    finally:
        process.terminate()
        process.communicate()


def load(address: str, question: Question, clients: int, numbers: Iterable[int]) -> Load:
    """A round: the questions of these numbers, each client asking the next as soon as it is answered."""
    left = iter(numbers)

    def client(_: int) -> list[float]:
        connection = http.client.HTTPConnection(address, timeout=600)
        taken = []
        for number in left:
            begun = time.monotonic()
            body = json.dumps(question.body(number))
            connection.request("POST", question.path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            answer = reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{reply.status}: {answer.decode()}")
            taken.append(time.monotonic() - begun)
        return taken

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        found = [one for taken in threads.map(client, range(clients)) for one in taken]
    return Load(np.array(found), time.monotonic() - begun)
