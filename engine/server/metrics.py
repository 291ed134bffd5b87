"""Figures for Prometheus, in a registry of the server's own."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from engine.engine import Engine
from engine.events import Finished

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class _CacheSizes:
    """Asks the engine when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.cache_stats()
        sizes = GaugeMetricFamily(
            "sightline_cache_bytes", "What is kept for later requests.", labels=["kind"]
        )
        for kind in ("conversation", "image", "disk"):
            sizes.add_metric([kind], stats[f"{kind}_bytes"])
        yield sizes
        budget = GaugeMetricFamily(
            "sightline_cache_max_bytes", "The cache's budget in memory.", value=stats["max_bytes"]
        )
        yield budget


class Metrics:
    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "sightline_http_requests", "Responses.", ["route", "status"], registry=registry
        )
        self._answers = Counter(
            "sightline_answers", "Answers, by why they ended.", ["reason"], registry=registry
        )
        self._prompt = Counter(
            "sightline_prompt_tokens",
            "Tokens of prompts that had their turn, cached ones included.",
            registry=registry,
        )
        self._cached = Counter(
            "sightline_cached_tokens", "Tokens of prompts that needed no work.", registry=registry
        )
        self._generated = Counter(
            "sightline_generated_tokens", "Tokens of answers.", registry=registry
        )
        self._drafted = Counter(
            "sightline_drafted_tokens", "Those of them that a draft had guessed.", registry=registry
        )
        self._first = Histogram(
            "sightline_time_to_first_token_seconds",
            "From a request's submission to its first token.",
            buckets=_TTFT,
            registry=registry,
        )
        self._per_token = Histogram(
            "sightline_decode_seconds_per_token",
            "The time of each token after the first; one observation an answer.",
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self._queue = Histogram(
            "sightline_queue_seconds",
            "From a request's submission to the start of work.",
            buckets=_TTFT,
            registry=registry,
        )
        self.in_flight = Gauge(
            "sightline_requests_in_flight", "Requests at work or waiting.", registry=registry
        )
        registry.register(_CacheSizes(engine))

    def responded(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def ended(self, finished: Finished) -> None:
        self._answers.labels(finished.finish_reason).inc()
        if finished.prefill_seconds:  # else it was cancelled before its turn
            self._prompt.inc(finished.prompt_tokens)
        self._cached.inc(finished.cached_tokens)
        self._generated.inc(finished.completion_tokens)
        self._drafted.inc(finished.drafted_tokens)
        self._queue.observe(finished.queue_seconds)
        if finished.time_to_first_token is not None:
            self._first.observe(finished.time_to_first_token)
        if finished.tokens_per_second > 0:
            self._per_token.observe(1 / finished.tokens_per_second)

    def text(self) -> bytes:
        return generate_latest(self.registry)
