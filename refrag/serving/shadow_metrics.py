"""Publishes how closely compressed answers follow the plain decoder, by policy and budget, and logs the worst."""

import heapq
from collections import Counter, deque
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from refrag.serving.periodic import Periodic
from refrag.serving.triton import Metric, log_info
from refrag.teacher_forcing.fidelity import Fidelity

# busy: too many were waiting. too_long: the plain prompt does not fit the window. decoder: it lets nobody choose its
# tokens. failed: the decoder refused or ended the comparison.
SkipReason = Literal["busy", "too_long", "decoder", "failed"]

FLUSH_SECONDS, LOG_SECONDS, NUM_WORST = 1.0, 60.0, 5
AGREEMENT_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
DIVERGENCE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Upper ends of the label `expanded`; a share of its own for each request would be a series of its own.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Comparison:
    """One request, compared. expanded: share of its chunks. first_divergence: in nats, before the first token."""

    request_id: str
    policy: str
    expanded: float
    first_divergence: float
    fidelity: Fidelity
    num_tokens: int

    @property
    def labels(self) -> tuple[str, str]:
        return self.policy, f"{next(share for share in SHARES if self.expanded <= share):g}"

    def __str__(self) -> str:
        name = repr(self.request_id) if self.request_id else "without an id"
        return (
            f"request {name}: divergence {self.fidelity.divergence:.3f} nats, agreement {self.fidelity.agreement:.2f} "
            f"over {self.num_tokens} tokens, policy {self.policy!r}, {self.expanded:.0%} of the chunks expanded"
        )


class ShadowMetrics:
    """Histograms and counters of shadowed requests. Gathered, since each update is a round trip to the server."""

    def __init__(self) -> None:
        self.gathered: deque[Comparison] = deque()
        self.skipped: deque[SkipReason] = deque()
        self.since_log: list[Comparison] = []
        # Shown as 0 from the start, unlike the histograms, whose labels come with the requests.
        for reason in get_args(SkipReason):
            _skip_counter(reason)
        self.flush = Periodic("shadow-metrics", FLUSH_SECONDS, self._flush)
        self.log = Periodic("shadow-log", LOG_SECONDS, self._log_worst)

    def observe(self, comparison: Comparison) -> None:
        self.gathered.append(comparison)

    def skip(self, reason: SkipReason) -> None:
        self.skipped.append(reason)

    def close(self) -> None:
        self.flush.close()
        self.log.close()

    def _flush(self) -> None:
        skipped = Counter(self.skipped.popleft() for _ in range(len(self.skipped)))
        for reason, count in skipped.items():
            _skip_counter(reason).add(count)
        for _ in range(len(self.gathered)):
            comparison = self.gathered.popleft()
            self.since_log = heapq.nlargest(NUM_WORST, [*self.since_log, comparison], key=_divergence)
            agreement, divergence, first = _histograms(*comparison.labels)
            agreement.observe(comparison.fidelity.agreement)
            divergence.observe(comparison.fidelity.divergence)
            first.observe(comparison.first_divergence)

    def _log_worst(self) -> None:
        worst, self.since_log = self.since_log, []
        for comparison in worst:
            log_info(f"shadowed {comparison}")


def _divergence(comparison: Comparison) -> float:
    return comparison.fidelity.divergence


@cache
def _skip_counter(reason: SkipReason) -> Metric:
    description = "Requests drawn for shadowing that could not be compared"
    return Metric("COUNTER", "refrag_shadow_skipped", description, labels={"reason": reason})


@cache
def _histograms(policy: str, expanded: str) -> tuple[Metric, Metric, Metric]:
    labels = {"policy": policy, "expanded": expanded}
    return (
        Metric(
            "HISTOGRAM",
            "refrag_shadow_agreement",
            "Share of a plain answer's tokens that the compressed prompt finds likeliest too",
            AGREEMENT_BUCKETS,
            labels,
        ),
        Metric(
            "HISTOGRAM",
            "refrag_shadow_divergence",
            "Nats by which the compressed prompt's distributions diverge from the plain ones, mean of an answer",
            DIVERGENCE_BUCKETS,
            labels,
        ),
        Metric(
            "HISTOGRAM",
            "refrag_shadow_first_divergence",
            "Nats by which they diverge before the first token",
            DIVERGENCE_BUCKETS,
            labels,
        ),
    )
