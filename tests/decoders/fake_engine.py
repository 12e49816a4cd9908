"""An engine in the place of vLLM's, with the same behaviour at its edges, and a sink that keeps what it is sent."""

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from refrag.decoders.async_worker import Tokens
from refrag.decoders.base import DecoderStats, Delta
from refrag.engine.answer import Pick
from refrag.errors import RefragError, ServerUnavailable

PATIENCE_SECONDS = 30.0


@dataclass
class FakeSink:
    """Keeps what it is sent; `started` is set by its first delta."""

    deltas: list[Delta] = field(default_factory=list)
    error: RefragError | None = None
    done: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    num_ends: int = 0
    abandoned: bool = False
    broken: bool = False

    def send(self, delta):
        if self.broken:
            raise OSError("the pipe is gone")
        self.deltas.append(delta)
        self.started.set()
        if delta.finish_reason is not None:
            self._end()

    def fail(self, error):
        self.error = error
        self._end()

    def is_abandoned(self):
        return self.abandoned

    def token_ids(self):
        assert self.done.wait(PATIENCE_SECONDS)
        return [token_id for delta in self.deltas for token_id in delta.token_ids]

    def wait_for_error(self):
        assert self.done.wait(PATIENCE_SECONDS)
        return self.error

    def _end(self):
        self.num_ends += 1
        self.done.set()


class CountingEngine:
    """Answers with the tokens 10, 11, 12 … of its tokenizer until it is told to end.

    last_token: after so many tokens comes the end-of-sequence token, 2. dropped: names of requests that were closed
    before their end.
    """

    def __init__(self, tokenizer, last_token=10**9, max_in_flight=8):
        self.tokenizer, self.eos_ids, self.max_in_flight = tokenizer, {2}, max_in_flight
        self.last_token = last_token
        self.dropped, self.is_closed = [], False
        self.dead = False
        self.fault = None

    async def try_out(self):
        if self.fault is not None:
            raise self.fault

    async def stream(self, request, name):
        try:
            for number in range(self.last_token):
                await asyncio.sleep(0)
                if self.dead:
                    raise ServerUnavailable("vLLM's engine has died")
                yield Tokens([Pick(10 + number % 200, -0.5 if request.sampling.log_probabilities else None)], 1.0)
            yield Tokens([Pick(2)])
        except (asyncio.CancelledError, GeneratorExit):
            self.dropped.append(name)
            raise

    def failure(self):
        return ServerUnavailable("vLLM's engine has died") if self.dead else None

    def stats(self):
        return DecoderStats(num_blocks=7)

    def close(self):
        self.is_closed = True


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        with suppress(InterruptedError):
            time.sleep(0)
