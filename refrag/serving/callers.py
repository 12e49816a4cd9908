"""Remembers whose request has an id, so that a stop for one caller does not end what another began under the same id.

A caller is known by Triton's correlation id, which an ensemble hands on to its steps. A stop without one names nobody,
and ends whichever request has the id.
"""

from weakref import WeakValueDictionary

from refrag.serving.triton import Caller, ResponseStream


class Callers:
    """The stream of the newest request of each id, as long as a sink holds it; not for several threads at once."""

    def __init__(self) -> None:
        self._streams: WeakValueDictionary[str, ResponseStream] = WeakValueDictionary()

    def add(self, request_id: str, stream: ResponseStream) -> None:
        """Note that the id is this stream's request's from now on."""
        self._streams[request_id] = stream

    def may_stop(self, request_id: str, caller: Caller) -> bool:
        """Return whether a stop from `caller` is for the request that has the id, if any has."""
        if not caller:
            return True
        stream = self._streams.get(request_id)
        return stream is not None and not stream.closed and stream.caller == caller
