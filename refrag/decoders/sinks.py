"""Calls of sinks by the thread that computes, which what a sink raises must not end."""

import logging

from refrag.decoders.base import Sink
from refrag.errors import RefragError

log = logging.getLogger(__name__)


def is_abandoned(sink: Sink) -> bool:
    """Return whether the sink's receiver is gone; one that cannot tell counts as there."""
    try:
        return sink.is_abandoned()
    except Exception:
        log.exception("a receiver failed when asked whether it is gone")
        return False


def deliver_error(sink: Sink, error: RefragError) -> None:
    """End the sink's answer with the error, or log that it cannot be delivered."""
    try:
        sink.fail(error)
    except Exception:
        log.exception("a request's error could not be delivered")
