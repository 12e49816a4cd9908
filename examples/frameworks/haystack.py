"""A generator for Haystack, which takes documents beside the prompt and gives the citations beside the reply.

pipeline.add_component("generator", RefragGenerator(Endpoint("http://127.0.0.1:9000/v1")))
pipeline.connect("retriever.documents", "generator.documents")
pipeline.run({"retriever": {"query": question}, "generator": {"prompt": question}})
"""

from collections.abc import Iterable
from typing import Any

from haystack import Document, component
from haystack.dataclasses import StreamingCallbackT, StreamingChunk

from examples.frameworks.asking import Endpoint, Json, Part, as_document


@component
class RefragGenerator:
    """Answers a prompt over documents.

    streaming_callback: gets the answer piece by piece; citations are in the last piece's `meta`.
    """

    def __init__(self, endpoint: Endpoint, streaming_callback: StreamingCallbackT | None = None) -> None:
        self.endpoint, self.streaming_callback = endpoint, streaming_callback

    @component.output_types(replies=list[str], citations=list[dict[str, Any]], meta=list[dict[str, Any]])
    def run(self, prompt: str, documents: list[Document] | None = None) -> Json:
        messages = [{"role": "user", "content": prompt}]
        found = [as_document(each.content or "", each.meta, each.id) for each in documents or []]
        if self.streaming_callback is None:
            return _outputs([self.endpoint.ask(messages, found)])
        parts = []
        for part in self.endpoint.stream(messages, found):
            parts.append(part)
            self.streaming_callback(StreamingChunk(part.text, meta=_meta([part])))
        return _outputs(parts)


def _outputs(parts: list[Part]) -> Json:
    meta = _meta(parts)
    return {"replies": ["".join(part.text for part in parts)], "citations": meta["citations"], "meta": [meta]}


def _meta(parts: Iterable[Part]) -> Json:
    meta: Json = {"citations": [], "finish_reason": None, "usage": None}
    for part in parts:
        meta["citations"] = part.citations or meta["citations"]
        meta["finish_reason"] = part.finish_reason or meta["finish_reason"]
        meta["usage"] = part.usage or meta["usage"]
    return meta
