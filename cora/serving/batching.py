"""Requests that wait together become one batch: a bounded queue, one batch at a time, a deadline for each request."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

# How long a batch waits for those whom the one before it has just answered, as a share of the time that took. Without
# it clients that ask again at once would fall into two groups, of which one is a single request.
_GATHERING = 0.1
_LONGEST_GATHERING = 0.02  # seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """queue: requests that wait at most; prompts: of one batch at most, though one request at least; deadline: seconds
    until a request is answered, with a refusal if with nothing else."""

    queue: int = 128
    prompts: int = 256
    deadline: float = 30.0

    def __post_init__(self) -> None:
        for name in ("queue", "prompts", "deadline"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")


class Refused(Exception):
    """A request that is not answered now. reason: "full", "deadline" or "closing"; retry_after: whole seconds."""

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


@dataclass(frozen=True)
class Batch:
    """What a batch was, for those who count: its requests, their prompts, the seconds it took."""

    requests: int
    prompts: int
    seconds: float


@dataclass(eq=False)
class _Waiting(Generic[Question, Answer]):
    question: Question
    prompts: int
    answer: "asyncio.Future[Answer]"


class Batcher(Generic[Question, Answer]):
    """answers(questions) in a thread of its own, of all questions that have come in the meantime, in their order.

    answers: gives one answer for each question; prompts: how many prompts a question has; observe: told of every batch.
    Where `answers` raises for several questions each of them is asked by itself, so that one spoils none of the others.
    """

    def __init__(
        self,
        answers: Callable[[Sequence[Question]], Sequence[Answer]],
        prompts: Callable[[Question], int],
        limits: Limits,
        observe: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self.limits = limits
        self._answers, self._prompts, self._observe = answers, prompts, observe
        self._queue: deque[_Waiting[Question, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._last = Batch(1, 1, 0.0)
        self._expected = 1
        self._thread = ThreadPoolExecutor(1, "batches")
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def closing(self) -> bool:
        """Whether no more questions are taken."""
        return self._closing

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Answers what waits, and takes no more."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def ask(self, question: Question) -> Answer:
        """The answer. Raises Refused where the queue is full, the deadline has passed or `close` was called, and what
        `answers` raises."""
        if self._closing or len(self._queue) >= self.limits.queue:
            raise Refused("closing" if self._closing else "full", self._retry_after())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        one = _Waiting(question, self._prompts(question), answer)
        self._queue.append(one)
        self._changed.set()
        try:
            return await asyncio.wait_for(answer, self.limits.deadline)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            raise Refused("deadline", self._retry_after()) from None
        finally:
            if one in self._queue:  # of whom nobody waits any more
                self._queue.remove(one)

    def _retry_after(self) -> int:
        """Seconds until what waits now is answered, if that goes as fast as the last batch."""
        batches = 1 + len(self._queue) / self._last.requests
        return max(1, math.ceil(min(batches * self._last.seconds, 3600.0)))

    async def _work(self) -> None:
        while True:
            await self._changed.wait()
            await self._gather()
            batch = self._taken()
            if batch:
                await self._answer(batch)
            elif self._closing:
                return

    async def _gather(self) -> None:
        """Waits a moment for those whom the last batch answered: they may be about to ask again."""
        until = time.monotonic() + min(_GATHERING * self._last.seconds, _LONGEST_GATHERING)
        while len(self._queue) < self._expected and time.monotonic() < until and not self._closing:
            await asyncio.sleep(0.001)

    def _taken(self) -> list[_Waiting[Question, Answer]]:
        """The first of the queue, as many as fit into a batch."""
        taken: list[_Waiting[Question, Answer]] = []
        room = self.limits.prompts
        while self._queue and (not taken or self._queue[0].prompts <= room):
            taken.append(self._queue.popleft())
            room -= taken[-1].prompts
        if not self._queue and not self._closing:
            self._changed.clear()
        return taken

    async def _answer(self, batch: list[_Waiting[Question, Answer]]) -> None:
        begun = time.monotonic()
        questions = [one.question for one in batch]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, questions)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
                return
            _log.exception("a request could not be answered")
            _finish(batch[0], error)
            return
        self._last = Batch(len(batch), sum(one.prompts for one in batch), time.monotonic() - begun)
        self._expected = len(self._queue) + len(batch)
        self._observe(self._last)
        for one, answer in zip(batch, found, strict=True):
            _finish(one, answer)


def _finish(one: "_Waiting[Question, Answer]", result: Answer | Exception) -> None:
    if one.answer.done():  # Whoever asked has been refused, or is gone.
        return
    if isinstance(result, Exception):
        one.answer.set_exception(result)
    else:
        one.answer.set_result(result)
