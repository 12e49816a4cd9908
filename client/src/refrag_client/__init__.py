"""Ask a REFRAG model served by Triton: `RefragClient`, or `AsyncRefragClient` under asyncio.

`CollectionClient` fills collections, from which the server retrieves passages by itself. `StoreClient` fills and keeps
the store of chunk vectors. `Corpus` searches a folder for passages.
"""

from refrag_client.answer import Answer, Citation, Passage, Piece, Statistics
from refrag_client.async_client import AsyncRefragClient, AsyncStream
from refrag_client.client import RefragClient, Stream
from refrag_client.collections import CollectionClient, CollectionReport, Document, WriteReport
from refrag_client.corpus import Corpus
from refrag_client.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RefragError,
    ServerError,
    ServerUnavailable,
)
from refrag_client.request import GenerateOptions, GenerateRequest
from refrag_client.store import Deletions, IndexReport, StoreClient, StoreReport, TierReport
from refrag_client.tls import Tls

__all__ = [
    "Answer",
    "AsyncRefragClient",
    "AsyncStream",
    "Cancelled",
    "Citation",
    "CollectionClient",
    "CollectionReport",
    "ConnectionLost",
    "Corpus",
    "DeadlineExceeded",
    "Deletions",
    "Document",
    "GenerateOptions",
    "GenerateRequest",
    "IndexReport",
    "InvalidRequest",
    "Overloaded",
    "Passage",
    "Piece",
    "RefragClient",
    "RefragError",
    "ServerError",
    "ServerUnavailable",
    "Statistics",
    "StoreClient",
    "StoreReport",
    "Stream",
    "TierReport",
    "Tls",
    "WriteReport",
]
