"""The models of Triton behind the endpoint, under the names that callers use."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from refrag_client.async_client import AsyncRefragClient
from refrag_client.collections import CollectionClient, CollectionReport
from refrag_client.openai.errors import bad_field
from refrag_client.openai.settings import EndpointSettings
from refrag_client.store import Cut, Encoded, StoreClient

ENCODER = "chunk_encoder"


class Backend:
    """Clients of all models that are served, over one address of Triton's."""

    def __init__(self, settings: EndpointSettings, connection: Mapping[str, Any]) -> None:
        self.clients = {
            name: AsyncRefragClient(model=name, decoder_model=settings.decoder_model, **connection)
            for name in settings.model
        }
        self.default = settings.model[0]
        self._store = StoreClient(model=settings.store_model, **connection)
        self._collections = CollectionClient(**connection)
        self._rag = AsyncRefragClient(model=self.clients[self.default].settings.rag_model, **connection)

    def client(self, name: str) -> AsyncRefragClient:
        """Return the client of a model; raise ApiError 404 for a name that is not served."""
        if name not in self.clients:
            raise _not_served(name, list(self.clients))
        return self.clients[name]

    def check_encoder(self, name: str | None) -> None:
        if name not in (None, ENCODER):
            raise _not_served(str(name), [ENCODER])

    def names(self) -> list[str]:
        return [*self.clients, ENCODER]

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the chunks of the texts with their vectors."""
        return await asyncio.to_thread(self._store.encode, texts)

    async def cut(self, texts: Sequence[str]) -> Cut:
        """Return where the chunks of the texts begin and end."""
        return await asyncio.to_thread(self._store.cut, texts)

    async def has_collections(self) -> bool:
        """Return whether Triton has loaded the models that answer over collections."""
        return await self._rag.is_ready()

    async def collections(self) -> Sequence[CollectionReport]:
        """Return what each collection holds; nothing where Triton has no models for them."""
        return await asyncio.to_thread(self._collections.list) if await self.has_collections() else ()

    async def is_ready(self) -> bool:
        """Return whether Triton answers and has loaded all models that are served."""
        return all(await asyncio.gather(*(client.is_ready() for client in self.clients.values())))

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in [*self.clients.values(), self._rag]))
        self._store.close()
        self._collections.close()


def _not_served(name: str, served: Sequence[str]) -> Exception:
    return bad_field(
        "model", f"there is no model {name!r}; served are {', '.join(served)}", status=404, code="model_not_found"
    )
