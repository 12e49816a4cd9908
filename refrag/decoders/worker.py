"""A base for decoders that compute in a thread of their own: all but `submit` goes to that thread's worker."""

from typing import Protocol

from refrag.decoders.base import DecoderStats


class Worker(Protocol):
    """The thread that computes, and what others ask of it."""

    @property
    def stats(self) -> DecoderStats: ...

    def stop(self, request_id: str) -> None: ...

    def close(self) -> None: ...


class WorkerDecoder:
    """The part of a `DecoderBackend` that its worker does."""

    worker: Worker

    def stop(self, request_id: str) -> None:
        self.worker.stop(request_id)

    def stats(self) -> DecoderStats:
        return self.worker.stats

    def close(self) -> None:
        self.worker.close()
