"""The ids of requests on their way through a decoder, by which they are stopped. Its owner holds a lock."""

import time
from collections import OrderedDict
from typing import Any, Generic, TypeVar

from refrag.errors import Cancelled, InvalidRequest

R = TypeVar("R")

# A stop may overtake its request on the way through the ensemble; it is remembered for this long.
EARLY_STOP_SECONDS = 30.0
# The most early stops, and the most ids of finished requests, that are remembered.
MAX_REMEMBERED_IDS = 4096


class RequestIds(Generic[R]):
    """The requests that are in flight, by id; one without an id cannot be found again."""

    def __init__(self) -> None:
        self.in_flight: dict[str, R] = {}
        self.early_stops: OrderedDict[str, float] = OrderedDict()
        self.finished: OrderedDict[str, None] = OrderedDict()

    def check(self, request_id: str) -> None:
        """Raise InvalidRequest if the id is in flight, or Cancelled if it was stopped before its request came."""
        if request_id in self.in_flight:
            raise InvalidRequest(f"request id {request_id!r} is in flight already; give every request an id of its own")
        if self.early_stops.pop(request_id, 0.0) > time.monotonic():
            raise Cancelled(f"request {request_id!r} was stopped before it reached the decoder")

    def add(self, request_id: str, request: R) -> None:
        if request_id:
            self.in_flight[request_id] = request

    def release(self, request_id: str, request: R) -> None:
        """Give the id up, unless another request has it by now."""
        if self.in_flight.get(request_id) is request:
            del self.in_flight[request_id]
            _remember(self.finished, request_id, None)

    def find_to_stop(self, request_id: str) -> R | None:
        """Return the request to stop; raise InvalidRequest for an empty id.

        A request that is still to come within EARLY_STOP_SECONDS is refused by `check` then; a finished one is ignored.
        """
        if not request_id:
            raise InvalidRequest("stop came without a request id; send it with the id of the request to stop")
        if request_id not in self.in_flight and request_id not in self.finished:
            _remember(self.early_stops, request_id, time.monotonic() + EARLY_STOP_SECONDS)
        return self.in_flight.get(request_id)


def _remember(ids: OrderedDict[str, Any], request_id: str, value: Any) -> None:
    """Add the id, and keep the newest MAX_REMEMBERED_IDS."""
    ids[request_id] = value
    ids.move_to_end(request_id)
    if len(ids) > MAX_REMEMBERED_IDS:
        ids.popitem(last=False)
