"""Server-sent events, and callers who leave: whoever waits for an answer stops the decoder by going away."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from refrag_client.errors import RefragError, ServerUnavailable
from refrag_client.openai.errors import from_refrag

Result = TypeVar("Result")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
END = b"data: [DONE]\n\n"


class CallerLeft(Exception):
    """Raised where nobody waits for the answer any more."""


class Patience:
    """Runs work for callers for as long as they wait, and until the endpoint must end."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()
        # The loop itself holds its tasks weakly, and one that was cancelled still tells the decoder to stop.
        self._tasks: set[asyncio.Future[Any]] = set()

    def end(self) -> None:
        """End all work with ServerUnavailable."""
        self._is_over.set()

    async def run(self, work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
        """Return what the work returns; raise CallerLeft, or ServerUnavailable at the endpoint's end, and cancel it."""
        task = self._start(work)
        left, over = self._start(_wait_until_left(receive)), self._start(self._is_over.wait())
        try:
            await asyncio.wait({task, left, over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if over.done():
                raise ServerUnavailable("the endpoint is stopping; ask again")
            raise CallerLeft
        finally:
            for each in (task, left, over):
                each.cancel()

    async def finish(self) -> None:
        """Return once what was cancelled has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        # A task whose caller has left fails with nobody to tell.
        if not task.cancelled():
            task.exception()


class EventStream(Response):
    """A response of server-sent events without names: one JSON object each, an error in place of the rest.

    names: as for `from_refrag`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[dict[str, Any], None], patience: Patience, names: Mapping[str, str]
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.events, self.patience, self.names = events, patience, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self.patience.run(self._send_events(send), receive)
        except CallerLeft:
            return
        except RefragError as error:
            await _send(send, _encode(from_refrag(error, self.names).body()))
        await send({"type": "http.response.body", "body": END})

    async def _send_events(self, send: Send) -> None:
        # Closed at once, and not when it is collected: that is what stops the decoder.
        async with aclosing(self.events) as events:
            async for event in events:
                await _send(send, _encode(event))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _encode(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
