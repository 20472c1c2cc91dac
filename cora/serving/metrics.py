"""What a server counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cora.serving.batching import Batch

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counts of one server. waiting: tells how many requests are in the queue."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("cora_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "cora_request_seconds", "Headers to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._refused = Counter("cora_refused", "Requests refused with a 503.", ["reason"], registry=registry)
        self._together = Histogram("cora_batch_requests", "Requests in a batch.", buckets=_SIZES, registry=registry)
        self._prompts = Histogram(
            "cora_batch_prompts", "Prompts in a batch, at most.", buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram("cora_batch_seconds", "Time a batch took.", buckets=_SECONDS, registry=registry)
        Gauge("cora_waiting_requests", "Requests in the queue.", registry=registry).set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def batch(self, batch: Batch) -> None:
        self._together.observe(batch.requests)
        self._prompts.observe(batch.prompts)
        self._batch_seconds.observe(batch.seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
