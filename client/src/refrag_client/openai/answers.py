"""Objects of OpenAI's API made of an answer: the completion, its usage, log-probabilities and citations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refrag_client.answer import Answer, Piece, Statistics
from refrag_client.openai.documents import Document
from refrag_client.openai.translate import Ask

Json = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """The names that one of the two routes has for the objects of an answer, and what they share.

    request_id: by which Triton knows the request. is_chat: whether the answer is a message, or else a bare text.
    """

    request_id: str
    model: str
    created: int
    is_chat: bool

    def whole(self, ask: Ask, pieces: Sequence[Piece], answer: Answer) -> Json:
        """Return the object of a whole answer."""
        text = "".join(piece.text for piece in pieces)
        log_probs = self._log_probs(pieces, 0) if ask.wants_log_probs else None
        told = cite(answer, documents_of(ask, answer))
        if self.is_chat:
            said: Json = {"message": {"role": "assistant", "content": text, "refusal": None, **told}}
        else:
            said = {"text": text, **told}
        choice = {"index": 0, **said, "logprobs": log_probs, "finish_reason": answer.finish_reason}
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": usage(answer.statistics), **_chunks(ask, answer)}

    def part(self, ask: Ask, piece: Piece, is_first: bool, offset: int, answer: Answer | None) -> Json:
        """Return the object of one piece, which begins at the character `offset`; with the last comes the answer."""
        told = {} if answer is None else cite(answer, documents_of(ask, answer))
        log_probs = self._log_probs([piece], offset) if ask.wants_log_probs else None
        said: Json
        if self.is_chat:
            said = {"delta": {**({"role": "assistant"} if is_first else {}), "content": piece.text, **told}}
        else:
            said = {"text": piece.text, **told}
        finish_reason = None if answer is None else answer.finish_reason
        choice = {"index": 0, **said, "logprobs": log_probs, "finish_reason": finish_reason}
        chunks = {} if answer is None else _chunks(ask, answer)
        return {**self._head("chat.completion.chunk"), "choices": [choice], **chunks}

    def usage_part(self, answer: Answer) -> Json:
        """Return the last object of a stream, which has no choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer.statistics)}

    def _head(self, kind: str) -> Json:
        prefix, kind = ("chatcmpl", kind) if self.is_chat else ("cmpl", "text_completion")
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _log_probs(self, pieces: Sequence[Piece], offset: int) -> Json:
        tokens = [token for piece in pieces for token in _tokens_of(piece)]
        if self.is_chat:
            return {"content": [_chat_token(text, log_prob) for text, log_prob in tokens], "refusal": None}
        texts = [text for text, _ in tokens]
        offsets = [offset + len("".join(texts[:number])) for number in range(len(texts))]
        log_probs = [log_prob for _, log_prob in tokens]
        return {"tokens": texts, "token_logprobs": log_probs, "top_logprobs": None, "text_offset": offsets}


def usage(statistics: Statistics) -> Json:
    """Return the counts: the prompt's tokens are its slots, which stand for more tokens of context."""
    num_output_tokens = statistics.num_output_tokens
    return {
        "prompt_tokens": statistics.prompt_slots,
        "completion_tokens": num_output_tokens,
        "total_tokens": statistics.prompt_slots + num_output_tokens,
        "prompt_tokens_details": {
            "prompt_slots": statistics.prompt_slots,
            "context_tokens": statistics.context_tokens,
            "chunks": statistics.num_chunks,
            "stored_chunks": statistics.num_stored_chunks,
            "expanded_chunks": statistics.num_expanded_chunks,
            "chunk_budget": statistics.chunk_budget,
            "cut_turns": statistics.num_cut_turns,
        },
    }


def _chunks(ask: Ask, answer: Answer) -> Json:
    """Return what became of the chunks, and which passages were found, where that was asked for.

    /v1/chunks tells where in the passages each chunk lies.
    """
    if not ask.wants_chunks:
        return {}
    told: Json = {
        "expanded_chunks": answer.statistics.expanded_chunks,
        "passage_weights": answer.passage_weights,
    }
    if ask.is_search:
        told["passages"] = [
            {"id": each.id, "title": each.title, "text": each.text, "score": each.score} for each in answer.passages
        ]
    return {"refrag": told}


def documents_of(ask: Ask, answer: Answer) -> Sequence[Document]:
    """Return the documents that were sent, or those that the server retrieved from a collection."""
    return ask.documents or [Document.retrieved(passage) for passage in answer.passages]


def cite(answer: Answer, documents: Sequence[Document]) -> Json:
    """Return `citations` in Cohere's form and `annotations` in OpenAI's; both empty where nothing was read in full.

    Which words of the answer come from which document is not known, so one citation covers the whole answer. Its
    sources are the documents of which the decoder has read parts in full; `spans` are these parts, in characters.
    """
    spans: dict[int, list[list[int]]] = {}
    for each in answer.citations:
        spans.setdefault(each.passage, []).append([each.start, each.end])
    if not spans or not answer.text:
        return {"citations": [], "annotations": []}
    sources = [_source(number, documents[number], spans[number], answer) for number in sorted(spans)]
    annotations = [_annotation(number, documents[number], len(answer.text)) for number in sorted(spans)]
    whole = {"start": 0, "end": len(answer.text), "text": answer.text, "content_index": 0, "type": "TEXT_CONTENT"}
    return {"citations": [{**whole, "sources": sources}], "annotations": annotations}


def _source(number: int, document: Document, spans: list[list[int]], answer: Answer) -> Json:
    return {
        "type": "document",
        "id": document.name(number),
        "document": {**document.fields, "id": document.name(number)},
        "index": number,
        "weight": answer.passage_weights[number],
        "spans": spans,
    }


def _annotation(number: int, document: Document, length: int) -> Json:
    cited = {
        "start_index": 0,
        "end_index": length,
        "title": document.title or document.name(number),
        "url": document.url or f"source:{document.name(number)}",
    }
    return {"type": "url_citation", "url_citation": cited}


def _tokens_of(piece: Piece) -> list[tuple[str, float]]:
    """Return each token's text and log-probability; a piece's text came with the last of its tokens."""
    if not piece.log_probs:
        return []
    *earlier, last = piece.log_probs
    return [*(("", log_prob) for log_prob in earlier), (piece.text, last)]


def _chat_token(text: str, log_prob: float) -> Json:
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode()), "top_logprobs": []}
