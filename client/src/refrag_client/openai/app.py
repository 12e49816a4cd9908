"""The routes of the endpoint, each a few lines: translate, ask Triton, answer."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from refrag_client.errors import RefragError, ServerError
from refrag_client.openai.answers import Form
from refrag_client.openai.backend import ENCODER, Backend
from refrag_client.openai.bodies import ChatBody, ChunksBody, CompletionBody, EmbeddingBody
from refrag_client.openai.embeddings import describe_chunks, describe_embeddings
from refrag_client.openai.errors import ApiError, bad_field, error_response, from_refrag, from_validation
from refrag_client.openai.gate import Gate
from refrag_client.openai.generation import Generation
from refrag_client.openai.keys import ApiKeys
from refrag_client.openai.metrics import Metrics
from refrag_client.openai.settings import EndpointSettings
from refrag_client.openai.streaming import EventStream, Patience
from refrag_client.openai.translate import Ask, check_deadline, translate_chat, translate_completion

PAGE = Path(__file__).with_name("page.html")
# The field of the texts that these routes have encoded, for what Triton says of them.
TEXTS = {"/v1/embeddings": "input", "/v1/chunks": "documents"}
# The page is one file that asks nobody but this endpoint.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(settings: EndpointSettings, backend: Backend, keys: ApiKeys, patience: Patience) -> FastAPI:
    """Return the endpoint in front of a backend; `patience` ends what still runs when the endpoint stops."""

    @asynccontextmanager
    async def close_at_the_end(app: FastAPI) -> AsyncIterator[None]:
        yield
        await patience.finish()
        await backend.close()

    metrics = Metrics()
    # Its own pages about the routes load scripts from elsewhere.
    app = FastAPI(lifespan=close_at_the_end, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, keys=keys, settings=settings, metrics=metrics)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origin), allow_methods=["*"], allow_headers=["*"]
        )
    _add_generation(app, backend, patience, metrics)
    _add_encoder(app, backend, patience)
    _add_models(app, backend)
    _add_collections(app, backend)
    _add_operations(app, backend, metrics)
    _add_errors(app)
    return app


def _add_generation(app: FastAPI, backend: Backend, patience: Patience, metrics: Metrics) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        return await answer(request, body.model, translate_chat(body), is_chat=True)

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        return await answer(request, body.model, translate_completion(body), is_chat=False)

    async def answer(request: Request, model: str | None, ask: Ask, is_chat: bool) -> Response:
        model = model or backend.default
        form = Form(request.state.request_id, model, int(time.time()), is_chat)
        client = backend.client(model)
        check_deadline(ask, client.settings.timeout_seconds)
        generation = Generation(ask, form, client, metrics)
        try:
            if not ask.is_stream:
                return JSONResponse(await patience.run(generation.whole(), request.receive))
            await patience.run(generation.begin(), request.receive)
        except RefragError as error:
            if isinstance(error, ServerError) and ask.is_search and not await backend.has_collections():
                raise bad_field("collection", "this server has no collections; send documents") from error
            raise from_refrag(error, ask.names) from error
        return EventStream(generation.events(), patience, ask.names)


def _add_encoder(app: FastAPI, backend: Backend, patience: Patience) -> None:
    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        backend.check_encoder(body.model)
        encoded = await patience.run(backend.encode(body.input), request.receive)
        return JSONResponse(describe_embeddings(encoded, len(body.input), ENCODER, body.encoding_format))

    @app.post("/v1/chunks")
    async def cut(body: ChunksBody, request: Request) -> Response:
        texts = [document.text for document in body.documents]
        return JSONResponse(describe_chunks(await patience.run(backend.cut(texts), request.receive)))


def _add_models(app: FastAPI, backend: Backend) -> None:
    created = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "refrag", "root": name, "parent": None}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(name) for name in backend.names()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != ENCODER:
            backend.client(name)
        return describe(name)


def _add_collections(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/collections")
    async def collections() -> dict[str, Any]:
        found = [
            {"id": each.name, "object": "collection", "num_passages": each.num_passages}
            for each in await backend.collections()
        ]
        return {"object": "list", "data": found}


def _add_operations(app: FastAPI, backend: Backend, metrics: Metrics) -> None:
    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/health")
    async def health() -> Response:
        if await backend.is_ready():
            return JSONResponse({"status": "ready"})
        raise ApiError(503, "Triton does not answer, or has not loaded the models", "server_error", code="unavailable")

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def told(request: Request, error: Exception) -> Response:
        return error_response(cast(ApiError, error))

    @app.exception_handler(RefragError)
    async def refused(request: Request, error: Exception) -> Response:
        field = TEXTS.get(request.url.path, "path")
        return error_response(from_refrag(cast(RefragError, error), {"messages": field, "documents": field}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Exception) -> Response:
        return error_response(from_validation(request.url.path, cast(RequestValidationError, error).errors()))

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: Exception) -> Response:
        failure = cast(HTTPException, error)
        if failure.status_code == 400:
            # FastAPI's word for JSON that Python cannot read.
            return error_response(ApiError(400, "the body cannot be read as JSON; check it", param="body"))
        told = f"{request.method} {request.url.path} is not served: {failure.detail}"
        return error_response(ApiError(failure.status_code, told, param="path", headers=failure.headers or {}))
