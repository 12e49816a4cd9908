"""A chat model for LangChain, which sends documents along and keeps the citations.

    model = ChatRefrag(base_url="http://127.0.0.1:9000/v1", retriever=my_retriever)
    answer = model.invoke("Which animal does Mara Tolen keep?")
    print(answer.content, answer.response_metadata["citations"])

Without a retriever: `model.invoke(question, documents=[Document("…")])`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import Field, SecretStr

from examples.frameworks.asking import Endpoint, Json, Part, as_document


class ChatRefrag(BaseChatModel):
    """A chat model over documents. They come with the call, or else the retriever finds them by the last message.

    refrag: options such as expand_fraction. options: OpenAI's own, such as max_tokens.
    """

    base_url: str
    api_key: SecretStr = SecretStr("none")
    model: str = "refrag"
    retriever: BaseRetriever | None = None
    refrag: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "refrag"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        documents: Sequence[Document] | None = None,
        **options: Any,
    ) -> ChatResult:
        part = self._endpoint().ask(_as_json(messages), self._find(messages, documents), stop=stop, **options)
        message = AIMessage(part.text, response_metadata=_metadata(part), usage_metadata=_usage(part))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        documents: Sequence[Document] | None = None,
        **options: Any,
    ) -> Iterator[ChatGenerationChunk]:
        found = self._find(messages, documents)
        for part in self._endpoint().stream(_as_json(messages), found, stop=stop, **options):
            message = AIMessageChunk(part.text, response_metadata=_metadata(part), usage_metadata=_usage(part))
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(part.text, chunk=chunk)
            yield chunk

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.base_url, self.api_key.get_secret_value(), self.model, self.refrag, self.options)

    def _find(self, messages: Sequence[BaseMessage], documents: Sequence[Document] | None) -> list[Json]:
        if documents is None:
            documents = [] if self.retriever is None else self.retriever.invoke(str(messages[-1].text))
        return [as_document(document.page_content, document.metadata, document.id) for document in documents]


def _as_json(messages: Sequence[BaseMessage]) -> list[Json]:
    return list(convert_to_openai_messages(list(messages)))


def _metadata(part: Part) -> Json:
    """Return what belongs to the last part alone: pieces are added up, and texts of all would be joined."""
    if part.finish_reason is None:
        return {}
    return {"citations": part.citations, "finish_reason": part.finish_reason}


def _usage(part: Part) -> UsageMetadata | None:
    if part.usage is None:
        return None
    return UsageMetadata(
        input_tokens=part.usage["prompt_tokens"],
        output_tokens=part.usage["completion_tokens"],
        total_tokens=part.usage["total_tokens"],
    )
