"""Ask a REFRAG model served by Triton: `RefragClient`, or `AsyncRefragClient` under asyncio."""

from refrag_client.answer import Answer, Piece, Statistics
from refrag_client.async_client import AsyncRefragClient, AsyncStream
from refrag_client.client import RefragClient, Stream
from refrag_client.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RefragError,
    ServerError,
    ServerUnavailable,
)
from refrag_client.request import GenerateOptions, GenerateRequest, Policy
from refrag_client.settings import Tls

__all__ = [
    "Answer",
    "AsyncRefragClient",
    "AsyncStream",
    "Cancelled",
    "DeadlineExceeded",
    "GenerateOptions",
    "GenerateRequest",
    "InvalidRequest",
    "Overloaded",
    "Piece",
    "Policy",
    "RefragClient",
    "RefragError",
    "ServerError",
    "ServerUnavailable",
    "Statistics",
    "Stream",
    "Tls",
]
