"""What waits together is one batch; the queue is bounded; whoever asks gets an answer or a refusal in time."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from cora.serving.batching import Batch, Batcher, Limits, Refused


class Slow:
    """Answers question with -question, each batch as slow as it is told; 13 cannot be answered."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, questions: Sequence[int]) -> list[int]:
        self.batches.append(list(questions))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if 13 in questions:
            raise ValueError("13")
        return [-one for one in questions]


def batcher(answers: Slow, seen: list[Batch] | None = None, **limits: Any) -> Batcher[int, int]:
    seen = [] if seen is None else seen
    return Batcher(answers, lambda one: one, Limits(**limits), seen.append)


def run(made: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(made)


async def several(asked: Batcher[int, int], questions: Sequence[int], *, start: bool = True) -> list[Any]:
    if start:
        asked.start()
    return await asyncio.gather(*(asked.ask(one) for one in questions), return_exceptions=True)


def test_what_waits_is_one_batch() -> None:
    answers, seen = Slow(0.05), []

    async def main() -> None:
        asked = batcher(answers, seen)
        first = asyncio.create_task(several(asked, [1]))
        await asyncio.sleep(0.02)
        assert await several(asked, [2, 3, 4], start=False) == [-2, -3, -4]
        assert await first == [-1]
        await asked.close()

    run(main())
    assert answers.batches == [[1], [2, 3, 4]] and len(answers.threads) == 1
    assert [(one.requests, one.prompts) for one in seen] == [(1, 1), (3, 9)]
    assert all(one.seconds >= 0.05 for one in seen)


def test_a_batch_has_so_many_prompts_or_one_request() -> None:
    answers = Slow()
    assert run(several(batcher(answers, prompts=5), [2, 3, 1, 9, 4, 2])) == [-2, -3, -1, -9, -4, -2]
    assert answers.batches == [[2, 3], [1], [9], [4], [2]]


def test_those_who_ask_again_at_once_stay_together() -> None:
    answers = Slow(0.1)

    async def client(asked: Batcher[int, int], number: int) -> None:
        for _ in range(5):
            await asked.ask(number)
            await asyncio.sleep(0.001 * number)

    async def main() -> None:
        asked = batcher(answers)
        asked.start()
        await asyncio.gather(*(client(asked, number) for number in range(4)))

    run(main())
    assert sum(map(len, answers.batches)) == 20
    assert len(answers.batches) <= 7  # in two groups it would be 10


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    answers = Slow(1.2)

    async def main() -> list[Any]:
        asked = batcher(answers, queue=2, prompts=1)
        asked.start()
        first = asyncio.create_task(asked.ask(1))
        await first  # so that it is known how long a batch takes
        answers.seconds = 0.0
        return await asyncio.gather(*(asked.ask(one) for one in [1, 2, 3, 4]), return_exceptions=True)

    found = run(main())
    assert found[:2] == [-1, -2]
    assert [(one.reason, one.retry_after) for one in found[2:]] == [("full", 4), ("full", 4)]


def test_a_deadline_passes_in_the_queue_and_in_a_batch() -> None:
    answers = Slow(0.3)

    async def main() -> None:
        asked = batcher(answers, deadline=0.1, prompts=1)
        found = await several(asked, [1, 2, 3])
        assert [one.reason for one in found] == ["deadline"] * 3 and asked.waiting == 0
        answers.seconds = 0.0
        await asyncio.sleep(0.25)
        assert await asked.ask(4) == -4

    run(main())
    assert answers.batches == [[1], [4]]


def test_one_that_fails_spoils_no_other(caplog: pytest.LogCaptureFixture) -> None:
    answers = Slow()
    found = run(several(batcher(answers), [1, 13, 2]))
    assert found[0] == -1 and found[2] == -2 and str(found[1]) == "13"
    assert answers.batches == [[1, 13, 2], [1], [13], [2]]
    assert [one.message for one in caplog.records] == ["a request could not be answered"]


def test_close_answers_what_waits_and_takes_no_more() -> None:
    answers = Slow(0.05)

    async def main() -> None:
        asked = batcher(answers, prompts=1)
        waiting = asyncio.create_task(several(asked, [1, 1, 1]))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asked.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="closing"):
            await asked.ask(1)
        await closing
        assert await waiting == [-1, -1, -1]

    run(main())


@pytest.mark.parametrize(
    ("name", "value"), [("queue", 0), ("prompts", -1), ("deadline", 0.0), ("deadline", float("nan"))]
)
def test_limits_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a positive number, got"):
        Limits(**{name: value})
