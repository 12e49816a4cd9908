"""First step of the ensemble `refrag_rag`: question → the passages of a collection that fit it best."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np

from refrag.errors import InvalidRequest, SetupError
from refrag.retrieval.base import Mode, Query
from refrag.retrieval.conditions import parse_filter
from refrag.retrieval.settings import CollectionSettings, open_reader
from refrag.serving.parameters import check_least
from refrag.serving.passage_encoder import PassageEncoder
from refrag.serving.search_metrics import SearchMetrics
from refrag.serving.tensors import Tensors, check_bytes, float32, integer, strings, text
from refrag.serving.triton import close_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieverSettings(CollectionSettings):
    """Settings of collections, and

    default_num_passages: where a request does not say. max_passages: limit for one request.
    max_question_bytes: limit for the question, all of whose words are searched for.

    Raises SetupError for values that are not allowed.
    """

    default_num_passages: int = 10
    max_passages: int = 256
    max_question_bytes: int = 65536

    def __post_init__(self) -> None:
        check_least(self, 1, "default_num_passages", "max_passages", "max_question_bytes")
        if self.default_num_passages > self.max_passages:
            raise SetupError(
                f"default_num_passages is {self.default_num_passages}; it must be at most max_passages, which is "
                f"{self.max_passages}"
            )


class Retriever:
    """The service behind the model `retriever`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: RetrieverSettings) -> None:
        self.settings = settings
        self.encoder = PassageEncoder.load(checkpoint)
        if self.encoder is None:
            log.warning("this deployment has no passage encoder: collections are searched by words alone")
        self.reader = open_reader(settings, None if self.encoder is None else self.encoder.identity)
        self.metrics = SearchMetrics()

    def run(self, inputs: Tensors) -> Tensors:
        arrival = time.monotonic_ns()
        name, question, num_passages, mode = self._read_request(inputs)
        conditions = parse_filter(text(inputs, "filter") or "{}")
        with self.metrics.time_search():
            vector = None if self.encoder is None or mode == "text" else self.encoder.encode_question(question)
            hits = self.reader.search(name, Query(question, vector, num_passages, mode, conditions))
        return {
            "passages": strings(*(hit.text for hit in hits)),
            "passage_ids": strings(*(hit.id for hit in hits)),
            "passage_titles": strings(*(hit.title for hit in hits)),
            "passage_scores": float32(*(hit.score for hit in hits)),
            "passage_metadata": strings(*(json.dumps(dict(hit.metadata)) for hit in hits)),
            "arrival_time_ns": np.array([arrival], np.int64),
        }

    def close(self) -> None:
        self.metrics.close()
        close_metrics()

    def _read_request(self, inputs: Tensors) -> tuple[str, str, int, Mode]:
        """Return collection, question, number of passages and mode."""
        check_bytes(inputs, ["text_input"], self.settings.max_question_bytes)
        num_passages, mode = integer(inputs, "num_passages"), text(inputs, "search_mode") or "hybrid"
        if num_passages is None:
            num_passages = self.settings.default_num_passages
        if not 1 <= num_passages <= self.settings.max_passages:
            raise InvalidRequest(f"num_passages is {num_passages}; allowed is 1 to {self.settings.max_passages}")
        if mode not in get_args(Mode):
            raise InvalidRequest(f"search_mode is {mode!r}; allowed: {', '.join(get_args(Mode))}")
        return text(inputs, "collection") or "", text(inputs, "text_input") or "", num_passages, cast(Mode, mode)
