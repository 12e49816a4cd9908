"""Publishes how long searches of collections take among Triton's metrics."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from refrag.serving.periodic import Periodic
from refrag.serving.triton import Metric

FLUSH_SECONDS = 1.0
SEARCH_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class SearchMetrics:
    """The retriever's metric, updated by a thread that no search waits for."""

    def __init__(self) -> None:
        self.search = Metric(
            "HISTOGRAM",
            "refrag_search_seconds",
            "Seconds to find a question's passages, its vector included",
            SEARCH_BUCKETS,
        )
        self.search_seconds: deque[float] = deque()
        self.flush = Periodic("search-metrics", FLUSH_SECONDS, self._flush)

    @contextmanager
    def time_search(self) -> Iterator[None]:
        """Time the block as one search, if it succeeds."""
        start = time.perf_counter()
        yield
        self.search_seconds.append(time.perf_counter() - start)

    def close(self) -> None:
        self.flush.close()

    def _flush(self) -> None:
        for _ in range(len(self.search_seconds)):
            self.search.observe(self.search_seconds.popleft())
