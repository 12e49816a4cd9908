"""Answers that an engine of TensorRT-LLM is giving: its token ids → deltas, as the torch decoder's are."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from refrag.context.tokenizer import TextTokenizer
from refrag.decoders.base import DecoderRequest, Delta
from refrag.engine.text_stream import TextStream
from refrag.errors import InvalidRequest, RefragError
from refrag.serving.responses import StreamingSink
from refrag.serving.triton import Caller

# An engine that was told to stop may send what it had on the way. At least so long its request's id is not given to
# another.
ENDING_SECONDS = 5.0


@dataclass(frozen=True)
class Announcement:
    """Facts that postprocessing must have of an answer before its first token; times are of time.monotonic()."""

    prompt_slots: int
    max_tokens: int
    deadline: float
    arrival: float
    streaming: bool = True
    log_probabilities: bool = False
    stop_words: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: DecoderRequest, streaming: bool) -> "Announcement":
        sampling = request.sampling
        return cls(
            prompt_slots=len(request.prompt.input_ids),
            max_tokens=sampling.max_tokens,
            deadline=request.deadline,
            arrival=request.arrival,
            streaming=streaming,
            log_probabilities=sampling.log_probabilities,
            stop_words=sampling.stop_words,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Announcement":
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(**{**values, "stop_words": tuple(values["stop_words"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequest(f"answer is not what engine_request sends: {error!r}") from None


@dataclass(eq=False)
class EngineAnswer:
    """An answer in the making. error: what ends it, once it was stopped or too late; is_ended: its caller knows.

    caller: the correlation id of its request. is_over: the engine has said its last word, or is no longer waited for.
    is_stopping: a stop is on its way to the engine, which would end the next request with the id.
    """

    request_id: str
    caller: Caller
    announced: Announcement
    text: TextStream
    eos_ids: Collection[int]
    sink: StreamingSink
    num_tokens: int = 0
    last_token_time: float = 0.0
    error: RefragError | None = None
    is_ended: bool = False
    is_over: bool = False
    is_stopping: bool = False
    given_up: float = field(default=float("inf"))

    @classmethod
    def begin(
        cls,
        request_id: str,
        caller: Caller,
        announced: Announcement,
        tokenizer: TextTokenizer,
        eos_ids: Collection[int],
        sink: StreamingSink,
    ) -> "EngineAnswer":
        return cls(request_id, caller, announced, TextStream(tokenizer, announced.stop_words), eos_ids, sink)

    def read(self, token_ids: Sequence[int], log_probabilities: Sequence[float]) -> Iterator[Delta]:
        """Yield a delta for each token up to the one that ends the answer; of no tokens, the engine's last word.

        The engine neither sends an end token that is its `end_id`, nor says why an answer has ended.
        """
        if not token_ids:
            yield Delta(self.text.flush(), [], finish_reason="stop")
        for token_id, log_probability in zip(token_ids, log_probabilities, strict=True):
            delta = self._extend(token_id, log_probability)
            yield delta
            if delta.finish_reason:
                return

    def _extend(self, token_id: int, log_probability: float) -> Delta:
        if token_id in self.eos_ids:
            return Delta(self.text.flush(), [], finish_reason="stop")
        self.num_tokens += 1
        piece = self.text.push(token_id)
        log_probabilities = [log_probability] if self.announced.log_probabilities else []
        if self.text.stopped:
            return Delta(piece, [token_id], log_probabilities, "stop")
        if self.num_tokens == self.announced.max_tokens:
            return Delta(piece + self.text.flush(), [token_id], log_probabilities, "length")
        return Delta(piece, [token_id], log_probabilities)
