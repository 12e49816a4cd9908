"""Publishes what the decoder does among Triton's metrics (port 8002, /metrics)."""

from collections import deque
from collections.abc import Callable

from refrag.decoders.base import DecoderStats
from refrag.serving.periodic import Periodic
from refrag.serving.triton import Metric

# Each update is a round trip to the server. So a thread that no answer waits for gathers and sends them; only the count
# of tokens is sent at each step.
FLUSH_SECONDS = 1.0
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class DecoderMetrics:
    """Counters, gauges and histograms of the decoder."""

    def __init__(self) -> None:
        self.gauges = {
            "num_active": Metric("GAUGE", "refrag_active_requests", "Requests being prefilled or decoded"),
            "num_waiting": Metric("GAUGE", "refrag_waiting_requests", "Requests waiting for a place in the decoder"),
            "num_held_blocks": Metric("GAUGE", "refrag_kv_blocks_held", "KV cache blocks held by active requests"),
            "num_blocks": Metric("GAUGE", "refrag_kv_blocks", "KV cache blocks in total"),
        }
        self.num_tokens = Metric("COUNTER", "refrag_generated_tokens", "Tokens generated")
        self.num_unread_tokens = Metric(
            "COUNTER", "refrag_unread_tokens", "Tokens of answers ended before their end: stopped, left, or too late"
        )
        self.counters = {
            "num_computed_slots": Metric("COUNTER", "refrag_computed_slots", "Prompt and answer slots computed"),
            "num_reused_slots": Metric(
                "COUNTER", "refrag_reused_slots", "Prompt slots reused from the KV cache, not computed"
            ),
            "num_preempted": Metric(
                "COUNTER", "refrag_preemptions", "Times a request was requeued for a more urgent one"
            ),
        }
        self.histograms = {
            "queue_seconds": Metric(
                "HISTOGRAM", "refrag_queue_seconds", "Seconds from arrival to admission by the decoder", LATENCY_BUCKETS
            ),
            "ttft_seconds": Metric(
                "HISTOGRAM", "refrag_ttft_seconds", "Seconds from arrival to first token", LATENCY_BUCKETS
            ),
            "sensing_seconds": Metric(
                "HISTOGRAM",
                "refrag_sensing_seconds",
                "Seconds from admission to the choice of chunks by the decoder's attention",
                LATENCY_BUCKETS,
            ),
            "inter_token_seconds": Metric(
                "HISTOGRAM",
                "refrag_inter_token_seconds",
                "Seconds between consecutive tokens of a request",
                INTER_TOKEN_BUCKETS,
            ),
        }
        self.gathered: deque[DecoderStats] = deque()

    def publish(self, stats: Callable[[], DecoderStats]) -> None:
        """Bring Triton's metrics up to date every second from now on; the gauges show what `stats` returns then."""
        self.stats, self.shown = stats, dict.fromkeys(self.gauges, -1)
        self.flush = Periodic("decoder-metrics", FLUSH_SECONDS, self._flush)

    def observe(self, stats: DecoderStats) -> None:
        """Note one step's stats; called by the decoder's thread.

        Tokens are counted at once, since their count shows whether a stop took effect.
        """
        if stats.num_tokens:
            self.num_tokens.add(stats.num_tokens)
        self.gathered.append(stats)

    def count_unread(self, num_tokens: int) -> None:
        """Count the tokens of an answer that ended before its end; called by the decoder's thread."""
        if num_tokens:
            self.num_unread_tokens.add(num_tokens)

    def close(self) -> None:
        self.flush.close()

    def _flush(self) -> None:
        self._show_state(self.stats())
        gathered = [self.gathered.popleft() for _ in range(len(self.gathered))]
        for name, counter in self.counters.items():
            if total := sum(getattr(stats, name) for stats in gathered):
                counter.add(total)
        for name, histogram in self.histograms.items():
            for stats in gathered:
                for value in getattr(stats, name):
                    histogram.observe(value)

    def _show_state(self, stats: DecoderStats) -> None:
        """Set the gauges that have changed: an idle decoder costs no round trip."""
        for name, gauge in self.gauges.items():
            if (value := getattr(stats, name)) != self.shown[name]:
                gauge.set(value)
                self.shown[name] = value
