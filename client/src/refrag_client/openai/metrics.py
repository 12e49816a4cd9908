"""The endpoint's own metrics, in Prometheus' format; the models' are on Triton's port."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

from refrag_client.answer import Answer

# No status was sent: the caller left before.
LEFT = "left"


class Metrics:
    """Counts and times of one endpoint. A request's time ends with the last byte of its answer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "refrag_openai_requests", "Requests, by route and status", ["route", "status"], registry=self.registry
        )
        self.running = Gauge(
            "refrag_openai_running_requests", "Requests that are being answered", registry=self.registry
        )
        self.seconds = Histogram("refrag_openai_request_seconds", "Whole requests", ["route"], registry=self.registry)
        self.first_tokens = Histogram(
            "refrag_openai_ttft_seconds", "Question sent to Triton to first token", registry=self.registry
        )
        self.output_tokens = Counter("refrag_openai_output_tokens", "Tokens of answers", registry=self.registry)
        self.prompt_slots = Counter("refrag_openai_prompt_slots", "Slots of prompts", registry=self.registry)
        self.context_tokens = Counter("refrag_openai_context_tokens", "Tokens of documents", registry=self.registry)

    def count(self, scope: Scope, statuses: Sequence[int], seconds: float) -> None:
        """Count a request that has ended, in whichever way."""
        # The route's own path, since callers may make up any number of others.
        route = scope.get("route")
        path = getattr(route, "path", "none")
        self.requests.labels(path, str(statuses[0]) if statuses else LEFT).inc()
        self.seconds.labels(path).observe(seconds)

    def count_answer(self, answer: Answer) -> None:
        if answer.ttft_seconds is not None:
            self.first_tokens.observe(answer.ttft_seconds)
        self.output_tokens.inc(answer.statistics.num_output_tokens)
        self.prompt_slots.inc(answer.statistics.prompt_slots)
        self.context_tokens.inc(answer.statistics.context_tokens)
