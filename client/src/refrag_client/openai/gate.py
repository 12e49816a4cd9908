"""Guards the routes: checks keys, limits bodies and their number, and counts what passes."""

import logging
import time
from uuid import uuid4

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refrag_client.openai.errors import RETRY_AFTER, ApiError, bad_field, error_response
from refrag_client.openai.keys import ApiKeys
from refrag_client.openai.metrics import Metrics
from refrag_client.openai.settings import EndpointSettings
from refrag_client.openai.streaming import CallerLeft

log = logging.getLogger(__name__)

GUARDED = "/v1/"
# Of a body that is too large, so much is read and thrown away, for that the caller may hear why it was refused.
DISCARDED_BYTES = 256 * 1024 * 1024
REQUEST_ID = b"x-request-id"


class Gate:
    """ASGI middleware: lets through what has a key, is not too large, and has room; every answer has a request id."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, settings: EndpointSettings, metrics: Metrics) -> None:
        self.app, self.keys, self.metrics = app, keys, metrics
        self.max_body_bytes, self.max_requests = settings.max_body_bytes, settings.max_requests
        self.stall_seconds = settings.stall_seconds
        self.num_running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            return await self.app(scope, receive, send)
        request_id = str(uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        statuses: list[int] = []

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id.encode())]
            await send(message)

        try:
            with self.metrics.running.track_inprogress():
                await self._pass(scope, receive, send_named)
        except Exception:
            log.exception("request %s to %s failed", request_id, scope["path"])
            if statuses:
                # There is no status left to give; the connection ends before the answer does.
                raise
            await error_response(_fault(request_id))(scope, receive, send_named)
        finally:
            self.metrics.count(scope, statuses, time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self.num_running += 1
        try:
            self._check_key(headers)
            self._check_room()
            body = await self._read(receive, headers)
            await self.app(scope, _replay(body, receive), send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        except CallerLeft:
            # Nobody hears an answer. Without one the request is counted as left.
            return
        finally:
            self.num_running -= 1

    def _check_room(self) -> None:
        if self.num_running > self.max_requests:
            told = f"{self.max_requests} requests are running, which is the endpoint's limit; ask again later"
            raise ApiError(429, told, "rate_limit_error", code="overloaded", headers=RETRY_AFTER)

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization")
        if not self.keys or self.keys.open(None if given is None else given.decode(errors="surrogateescape")):
            return
        told = "the API key is none of this endpoint's" if given else "there is no API key"
        raise ApiError(
            401,
            f"{told}; send the header Authorization: Bearer KEY",
            "authentication_error",
            param="authorization",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _read(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """Return the whole body; raise ApiError for one that is too large, of which little is kept, or too slow."""
        declared = headers.get(b"content-length", b"0")
        is_too_large = declared.isdigit() and int(declared) > self.max_body_bytes
        parts: list[bytes] = []
        num_bytes, has_more = 0, True
        with anyio.move_on_after(self.stall_seconds):
            while has_more and num_bytes <= DISCARDED_BYTES:
                message = await receive()
                parts.append(message.get("body", b""))
                num_bytes, has_more = num_bytes + len(parts[-1]), message.get("more_body", False)
                is_too_large = is_too_large or num_bytes > self.max_body_bytes
                if is_too_large:
                    parts.clear()
        if is_too_large:
            told = f"the body has more than {self.max_body_bytes} bytes, which is the endpoint's limit"
            raise bad_field("body", f"{told}; send fewer or shorter documents", status=413, code="too_large")
        if has_more:
            told = f"the body did not come whole within {self.stall_seconds:g} s"
            raise bad_field("body", f"{told}; send it faster", status=408, code="too_slow")
        return b"".join(parts)


def _fault(request_id: str) -> ApiError:
    told = f"the endpoint failed; its log tells why, under request {request_id}"
    return ApiError(500, told, "server_error", code="endpoint_failed")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that has the whole body at once, and then what really comes: that the caller leaves."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
