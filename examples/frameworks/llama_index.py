"""A query engine for LlamaIndex, which sends the nodes that a retriever finds and keeps the citations.

    engine = RefragQueryEngine(index.as_retriever(), Endpoint("http://127.0.0.1:9000/v1"))
    response = engine.query("Which animal does Mara Tolen keep?")
    print(response, response.metadata["citations"])

Without a retriever: `engine.synthesize(QueryBundle(question), nodes)`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, Response, StreamingResponse
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from examples.frameworks.asking import Endpoint, Json, as_document


class RefragQueryEngine(BaseQueryEngine):
    """Answers from the nodes that the retriever finds; `is_streaming` gives a StreamingResponse.

    The response's metadata has `citations` and `usage`, in streams once the answer has been read.
    """

    def __init__(self, retriever: BaseRetriever | None, endpoint: Endpoint, is_streaming: bool = False) -> None:
        super().__init__(callback_manager=None)
        self.retriever, self.endpoint, self.is_streaming = retriever, endpoint, is_streaming

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [] if self.retriever is None else list(self.retriever.retrieve(query_bundle))

    def synthesize(
        self, query_bundle: QueryBundle, nodes: Sequence[NodeWithScore], additional_source_nodes: Any = None
    ) -> RESPONSE_TYPE:
        messages = [{"role": "user", "content": query_bundle.query_str}]
        documents = [as_document(node.text, node.metadata, node.node_id) for node in nodes]
        metadata: Json = {}
        if self.is_streaming:
            texts = self._stream(messages, documents, metadata)
            return StreamingResponse(texts, source_nodes=list(nodes), metadata=metadata)
        part = self.endpoint.ask(messages, documents)
        metadata.update(citations=part.citations, usage=part.usage)
        return Response(part.text, source_nodes=list(nodes), metadata=metadata)

    def _stream(self, messages: list[Json], documents: list[Json], metadata: Json) -> Iterator[str]:
        for part in self.endpoint.stream(messages, documents):
            if part.finish_reason is not None:
                metadata["citations"] = part.citations
            if part.usage is not None:
                metadata["usage"] = part.usage
            yield part.text

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return self.synthesize(query_bundle, self.retrieve(query_bundle))

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return await asyncio.to_thread(self._query, query_bundle)

    def _get_prompt_modules(self) -> Json:
        return {}
