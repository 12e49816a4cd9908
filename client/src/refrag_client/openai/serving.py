"""Runs the endpoint under uvicorn: its socket, TLS, and an end that loses no stream."""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn

from refrag_client.errors import InvalidRequest, RefragError
from refrag_client.openai.app import make_app
from refrag_client.openai.backend import Backend
from refrag_client.openai.keys import ApiKeys
from refrag_client.openai.settings import EndpointSettings
from refrag_client.openai.streaming import Patience

# After the drain, callers whose answers were ended still have to be told.
TELLING_SECONDS = 5
# Longer than proxies keep an idle connection: otherwise they send requests into one that is just being closed.
KEEP_ALIVE_SECONDS = 75


def serve(settings: EndpointSettings, connection: Mapping[str, Any], announce: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM; `announce` gets the address once it is listened on."""
    Endpoint(settings, connection, announce).run()


class Endpoint(uvicorn.Server):
    """The server; when it stops, it takes no new requests, and answers on their way have `drain_seconds` to end."""

    def __init__(
        self, settings: EndpointSettings, connection: Mapping[str, Any], announce: Callable[[str], None]
    ) -> None:
        keys = ApiKeys.read(settings.api_keys)
        _check_certificate(settings)
        self.listener = _listen(settings)
        self.settings, self.announce, self.patience = settings, announce, Patience()
        app = make_app(settings, Backend(settings, connection), keys, self.patience)
        super().__init__(_configure(settings, app))
        if settings.is_reachable_from_outside and not keys:
            _warn("the endpoint is open to other machines, and without API keys; see --api-keys")

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn raises the signal that stopped it once more.
        with contextlib.suppress(KeyboardInterrupt):
            try:
                super().run(sockets or [self.listener])
            finally:
                self.listener.close()

    @property
    def url(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"{self.settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self.settings.drain_seconds, self.patience.end)
        await super().shutdown(sockets)
        ending.cancel()


def _configure(settings: EndpointSettings, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds) + TELLING_SECONDS,
    )


def _check_certificate(settings: EndpointSettings) -> None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    try:
        # An empty password, so that OpenSSL does not ask for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key, "")
    except (OSError, ssl.SSLError) as error:
        told = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidRequest(
            f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key} do not fit: {told}; "
            "give unencrypted PEM files"
        ) from None


def _listen(settings: EndpointSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise RefragError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Connections inherit it: the system ends one whose other side reads nothing for so long.
        milliseconds = max(1, int(settings.stall_seconds * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _warn(message: str) -> None:
    print(f"refrag: {message}", file=sys.stderr)
