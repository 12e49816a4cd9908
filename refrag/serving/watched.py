"""Notices callers who have left, in front of the ensemble, whose steps are not told of it.

Triton tells a model that its own caller is gone, but not the steps of an ensemble. This model passes each request on to
the ensemble, its responses back, and asks Triton now and then whether the caller still listens; if not, it stops the
decoder. Its inputs and outputs are the ensemble's.
"""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from refrag.serving.parameters import check_least
from refrag.serving.periodic import Periodic
from refrag.serving.triton import Relay, ResponseStream, send_stop

# Each look costs a round trip to the server for every stream.
LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class WatchedSettings:
    """Settings of the model in front. Raises SetupError for a number below 1.

    graph, decoder: names of the ensemble and of its decoder. max_streams: requests at a time, each in a thread that
    waits; more are queued here.
    """

    graph: str = "refrag"
    decoder: str = "decoder"
    max_streams: int = 512

    def __post_init__(self) -> None:
        check_least(self, 1, "max_streams")


class WatchedGraph:
    """The service behind the model `refrag_watched`, whose config.pbtxt lists the tensors."""

    def __init__(self, settings: WatchedSettings) -> None:
        self.settings = settings
        self._relays: dict[ResponseStream, Relay] = {}
        self._changing = threading.Lock()
        self._pool = ThreadPoolExecutor(settings.max_streams, thread_name_prefix="watched")
        self._look = Periodic("caller watch", LOOK_SECONDS, self._stop_left)

    def accept(self, request: Any) -> None:
        """Take the request and return at once; a thread answers it."""
        stream = ResponseStream(request)
        try:
            # Without an id, the decoder could not be told to stop.
            relay = Relay(request, self.settings.graph, request.request_id() or str(uuid.uuid4()))
            self._pool.submit(self._answer, relay, stream)
        except Exception as error:
            stream.fail(error)

    def close(self) -> None:
        self._look.close()
        self._pool.shutdown(cancel_futures=True)

    def _answer(self, relay: Relay, stream: ResponseStream) -> None:
        with self._changing:
            self._relays[stream] = relay
        try:
            relay.run(stream)
        except Exception as error:
            stream.fail(error)
        finally:
            with self._changing:
                del self._relays[stream]

    def _stop_left(self) -> None:
        with self._changing:
            relays = dict(self._relays)
        for relay in [relay for stream, relay in relays.items() if stream.is_cancelled()]:
            # Until the answer has ended: the decoder ignores a stop for a request that has not reached it.
            send_stop(self.settings.decoder, relay.request_id, relay.caller)
