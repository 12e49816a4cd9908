"""Publishes what the decoder does among Triton's metrics (port 8002, /metrics)."""

from collections import deque

from refrag.decoders.base import DecoderStats
from refrag.serving.periodic import Periodic
from refrag.serving.triton import Metric

# Updates are round trips to the server: but for the count of tokens, one for each step, they are gathered and made by
# a thread that no answer waits for.
FLUSH_SECONDS = 1.0
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class DecoderMetrics:
    """Counters, gauges and histograms of the decoder."""

    def __init__(self) -> None:
        self.gauges = {
            "num_active": Metric("GAUGE", "refrag_active_requests", "Requests that are prefilled or decoded"),
            "num_waiting": Metric("GAUGE", "refrag_waiting_requests", "Requests that wait for a place in the decoder"),
            "num_held_blocks": Metric("GAUGE", "refrag_kv_blocks_held", "Blocks of the KV cache that requests hold"),
            "num_blocks": Metric("GAUGE", "refrag_kv_blocks", "Blocks of the KV cache"),
        }
        self.num_tokens = Metric("COUNTER", "refrag_generated_tokens", "Tokens that the decoder has generated")
        self.counters = {
            "num_computed_slots": Metric("COUNTER", "refrag_computed_slots", "Slots that the decoder has computed"),
            "num_reused_slots": Metric("COUNTER", "refrag_reused_slots", "Prompt slots found in the KV cache"),
            "num_preempted": Metric("COUNTER", "refrag_preemptions", "Requests that gave way to more urgent ones"),
        }
        self.histograms = {
            "queue_seconds": Metric(
                "HISTOGRAM", "refrag_queue_seconds", "Arrival to admission by the decoder", LATENCY_BUCKETS
            ),
            "ttft_seconds": Metric("HISTOGRAM", "refrag_ttft_seconds", "Arrival to first token", LATENCY_BUCKETS),
            "inter_token_seconds": Metric(
                "HISTOGRAM", "refrag_inter_token_seconds", "Token to next token of a request", INTER_TOKEN_BUCKETS
            ),
        }
        self.gathered: deque[DecoderStats] = deque()
        self.flush = Periodic("decoder-metrics", FLUSH_SECONDS, self._flush)

    def observe(self, stats: DecoderStats) -> None:
        """Note one step; called by the decoder's thread. Tokens count at once: they tell whether a stop took effect."""
        if stats.num_tokens:
            self.num_tokens.add(stats.num_tokens)
        self.gathered.append(stats)

    def close(self) -> None:
        self.flush.close()

    def _flush(self) -> None:
        gathered = [self.gathered.popleft() for _ in range(len(self.gathered))]
        if not gathered:
            return
        for name, gauge in self.gauges.items():
            gauge.set(getattr(gathered[-1], name))
        for name, counter in self.counters.items():
            if total := sum(getattr(stats, name) for stats in gathered):
                counter.add(total)
        for name, histogram in self.histograms.items():
            for stats in gathered:
                for value in getattr(stats, name):
                    histogram.observe(value)
