"""Objects of OpenAI's API made of the encoder's vectors, and the places of chunks."""

import base64
from typing import Any, Literal

import numpy as np

from refrag_client.openai.errors import bad_field
from refrag_client.store import Cut, Encoded

# T texts, C chunks, E encoder width


def describe_embeddings(
    encoded: Encoded, num_texts: int, model: str, encoding_format: Literal["float", "base64"]
) -> dict[str, Any]:
    """Return the list of embeddings that /v1/embeddings answers with; raise ApiError for a text without a chunk."""
    if empty := sorted(set(range(num_texts)) - set(encoded.cut.spans[:, 0].tolist())):
        raise bad_field(f"input[{empty[0]}]", f"input[{empty[0]}] is empty; leave it out")
    vectors = embed(encoded, num_texts)
    data = [
        {"object": "embedding", "index": number, "embedding": _write(vector, encoding_format)}
        for number, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": encoded.cut.num_tokens, "total_tokens": encoded.cut.num_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def embed(encoded: Encoded, num_texts: int) -> np.ndarray:
    """Return one vector of length 1 for each text, the mean of its chunks' directions.  (C, E) -> FP32 (T, E)"""
    directions = _normalise(encoded.vectors.astype(np.float32))
    sums = np.zeros((num_texts, directions.shape[1]), np.float32)
    np.add.at(sums, encoded.cut.spans[:, 0], directions)
    return _normalise(sums)


def describe_chunks(cut: Cut) -> dict[str, Any]:
    """Return the place of each chunk in its document, in characters."""
    data = [
        {"object": "chunk", "index": number, "document": document, "start": start, "end": end}
        for number, (document, start, end) in enumerate(cut.spans.tolist())
    ]
    return {"object": "list", "data": data, "usage": {"context_tokens": cut.num_tokens}}


def _normalise(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return directions


def _write(vector: np.ndarray, encoding_format: Literal["float", "base64"]) -> list[float] | str:
    return vector.tolist() if encoding_format == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
