"""Prometheus metrics of the server: requests, tokens, waiting times, and what is under way."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One set an application, in a registry of its own, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_http_requests", "Answers given.", ("route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "tandem_http_request_seconds",
            "From the request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._prompt_tokens = Counter("tandem_prompt_tokens", "Prompt tokens read.", registry=self.registry)
        self._new_tokens = Counter(
            "tandem_generated_tokens", "Tokens generated, ends of turn included.", registry=self.registry
        )
        self._first_token_seconds = Histogram(
            "tandem_time_to_first_token_seconds",
            "From the request to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def gauge(self, name: str, help_: str, *, read: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        Gauge(f"tandem_{name}", help_, registry=self.registry).set_function(read)

    def count_request(self, route: str, *, status: int, seconds: float) -> None:
        """An answer was given; `route` is its pattern, never its path, of which there are endless."""
        self._requests.labels(route=route, status=str(status)).inc()
        self._request_seconds.labels(route=route).observe(seconds)

    def count_reply(
        self, num_prompt_tokens: int, *, num_tokens: int, first_token_seconds: float | None
    ) -> None:
        """A reply ended, or its client left; None where it had no first token."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._new_tokens.inc(num_tokens)
        if first_token_seconds is not None:
            self._first_token_seconds.observe(first_token_seconds)

    def text(self) -> bytes:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
