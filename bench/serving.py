"""`cora serve` under load on the loopback interface: clients that ask again as soon as they are answered."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from cora.runs.settings import RunConfig
from cora.runs.train import train

CLIENTS = 16
# (path, what one request of a client is), of so many requests a client and round.
QUESTIONS: dict[str, tuple[str, int, Callable[[int], dict[str, object]]]] = {
    "one item of a user each": ("/score", 2, lambda n: {"user": 1 + n * 37 % 943, "items": [1 + n * 61 % 1600]}),
    "one item of the same user each": ("/score", 2, lambda n: {"user": 196, "items": [1 + n * 61 % 1600]}),
    "the best of 20 items": ("/recommend", 1, lambda n: {"user": 1 + n * 37 % 943, "candidates": 20}),
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


def load(address: str, what: str, clients: int, first: int) -> Load:
    """A round: as many requests whatever the number of clients, the question numbers from `first` on."""
    path, each, question = QUESTIONS[what]
    requests = CLIENTS * each
    numbers = iter(range(first, first + requests))

    def client(_: int) -> list[float]:
        connection = http.client.HTTPConnection(address, timeout=600)
        taken = []
        for number in numbers:
            begun = time.monotonic()
            connection.request("POST", path, json.dumps(question(number)), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            body = reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{reply.status}: {body.decode()}")
            taken.append(time.monotonic() - begun)
        return taken

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        found = [one for taken in threads.map(client, range(clients)) for one in taken]
    return Load(np.array(found), time.monotonic() - begun)
