"""Behind an engine of TensorRT-LLM: its tokens → the responses that every decoder gives.

engine_request ── answer ─────────────────► postprocessing      which answer begins, by its request id
tensorrt_llm   ── output_ids ─────────────► postprocessing ──► client
tensorrt_llm   ◄───────── stop ──────────── postprocessing      a stop word, a deadline, a caller's stop
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refrag.context.deployed import DeployedTokenizers
from refrag.decoders.base import DecoderStats, join_deltas
from refrag.decoders.tensorrt_llm import EngineFacts
from refrag.engine.in_flight import RequestIds
from refrag.errors import Cancelled, DeadlineExceeded, InvalidRequest, RefragError, ServerUnavailable
from refrag.serving.decoder_metrics import DecoderMetrics
from refrag.serving.engine_answers import ENDING_SECONDS, Announcement, EngineAnswer
from refrag.serving.evidence import read_evidence
from refrag.serving.periodic import Periodic
from refrag.serving.responses import PASS_THROUGH, CollectingSink, Statistics, StreamingSink
from refrag.serving.stopping import StopFile
from refrag.serving.tensors import Tensors, flag, text
from refrag.serving.triton import Caller, ResponseStream, check_parameters, close_metrics, send_stop, tensors_of

log = logging.getLogger(__name__)

LATE = "the deadline of request {!r} passed; raise deadline_ms, or ask for fewer tokens"
# How often deadlines are looked at.
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class PostprocessingSettings:
    """engine: name of the model that decodes."""

    engine: str = "tensorrt_llm"


class Postprocessing:
    """The service behind the model `postprocessing`, whose config.pbtxt lists the tensors."""

    def __init__(self, checkpoint: Path, settings: PostprocessingSettings, inputs: Sequence[str]) -> None:
        self.settings, self.inputs = settings, inputs
        self.eos_ids = frozenset(EngineFacts.load(checkpoint).eos_ids)
        self.tokenizer = DeployedTokenizers.load(checkpoint).decoder
        self.ids: RequestIds[EngineAnswer] = RequestIds()
        self._changing = threading.Lock()
        self.metrics = DecoderMetrics()
        self.metrics.publish(lambda: DecoderStats(num_active=self.num_active))
        # Each stop waits for the engine's word, for which no other answer's text should.
        self._stops = ThreadPoolExecutor(1, thread_name_prefix="engine-stops")
        self._look = Periodic("deadlines", LOOK_SECONDS, self._end_late)
        self._stop_file = StopFile(self._cut_answers)

    @property
    def num_active(self) -> int:
        return sum(not answer.is_ended for answer in self._answers())

    def accept(self, request: Any) -> None:
        """Act on one message: an answer that begins, tokens of one, or a stop."""
        stream = ResponseStream(request)
        try:
            check_parameters(request, self.inputs)
            self._act(request.request_id(), tensors_of(request), stream)
        except Exception as error:
            stream.fail(error)
        stream.close()

    def close(self) -> None:
        self._look.close()
        self._stop_file.close()
        self.metrics.close()
        self._stops.shutdown(cancel_futures=True)
        close_metrics()

    def _act(self, request_id: str, inputs: Tensors, stream: ResponseStream) -> None:
        if not request_id:
            raise InvalidRequest("the message has no request id; send it with the id of the answer that it is about")
        with self._changing:
            if flag(inputs, "stop", default=False):
                self._stop(request_id, stream.caller)
            elif "answer" in inputs:
                self.ids.check(request_id)
                self.ids.add(request_id, self._begin(request_id, inputs, stream))
            elif answer := self.ids.in_flight.get(request_id):
                self._read(answer, inputs, stream)

    def _begin(self, request_id: str, inputs: Tensors, stream: ResponseStream) -> EngineAnswer:
        announced = Announcement.from_json(text(inputs, "answer") or "")
        # Copied: a tensor's memory belongs to its request, which is gone once execute() has returned.
        passed_through = {name: np.array(inputs.get(name, default)) for name, default in PASS_THROUGH.items()}
        sink_type = StreamingSink if announced.streaming else CollectingSink
        evidence = read_evidence(inputs, passed_through["expanded_chunks"])
        statistics = Statistics(passed_through, announced.prompt_slots, evidence)
        sink = sink_type(stream, statistics, self.metrics.count_unread)
        return EngineAnswer.begin(request_id, stream.caller, announced, self.tokenizer, self.eos_ids, sink)

    def _read(self, answer: EngineAnswer, inputs: Tensors, stream: ResponseStream) -> None:
        token_ids, log_probabilities = read_tokens(inputs)
        if not answer.is_ended:
            # Each of the engine's responses is a request of its own to this model.
            answer.sink.stream = stream
            if answer.error is not None:
                self._fail(answer, answer.error)
            else:
                self._send(answer, token_ids, log_probabilities)
        if not token_ids or answer.num_tokens == answer.announced.max_tokens:
            answer.is_over = True
            self._forget(answer)

    def _send(self, answer: EngineAnswer, token_ids: list[int], log_probabilities: list[float]) -> None:
        delta = join_deltas(list(answer.read(token_ids, log_probabilities)))
        self._observe(answer, len(delta.token_ids))
        if delta.finish_reason is not None:
            self._end(answer)
            if delta.finish_reason == "stop" and token_ids:
                self._stop_engine(answer)
        answer.sink.send(delta)

    def _fail(self, answer: EngineAnswer, error: RefragError) -> None:
        self._end(answer)
        answer.sink.fail(error)

    def _end(self, answer: EngineAnswer) -> None:
        answer.is_ended, answer.given_up = True, time.monotonic() + ENDING_SECONDS

    def _stop(self, request_id: str, caller: Caller) -> None:
        answer = self.ids.in_flight.get(request_id)
        if caller and (answer is None or answer.caller != caller):
            # It is for an answer that has ended, or one to come, for which it will be sent again.
            return
        answer = self.ids.find_to_stop(request_id)
        if answer is not None and answer.error is None and not answer.is_ended:
            self._interrupt(answer, Cancelled(f"request {request_id!r} was stopped by its caller"))

    def _interrupt(self, answer: EngineAnswer, error: RefragError) -> None:
        """Have the engine stop; with the response that it sends then, the caller gets the error."""
        answer.error, answer.given_up = error, time.monotonic() + ENDING_SECONDS
        self._stop_engine(answer)

    def _stop_engine(self, answer: EngineAnswer) -> None:
        if not answer.is_stopping:
            answer.is_stopping = True
            self._stops.submit(self._tell_engine, answer)

    def _tell_engine(self, answer: EngineAnswer) -> None:
        try:
            send_stop(self.settings.engine, answer.request_id, besides=STOP_BESIDES)
        except Exception:
            log.exception("the engine could not be told to stop")
        with self._changing:
            answer.is_stopping = False
            self._forget(answer)

    def _forget(self, answer: EngineAnswer) -> None:
        """Give the id up, once neither tokens of this answer nor a stop for it can reach another."""
        if answer.is_over and not answer.is_stopping:
            self.ids.release(answer.request_id, answer)

    def _answers(self) -> list[EngineAnswer]:
        return list(self.ids.in_flight.values())

    def _end_late(self) -> None:
        """End answers whose deadline has passed, and forget those of which the engine says no more."""
        now = time.monotonic()
        with self._changing:
            for answer in self._answers():
                if now > answer.given_up:
                    answer.is_over = True
                    self._forget(answer)
                elif now > answer.announced.deadline and answer.error is None and not answer.is_ended:
                    self._interrupt(answer, DeadlineExceeded(LATE.format(answer.request_id)))

    def _cut_answers(self) -> int:
        """End every answer, and return how many there were."""
        with self._changing:
            active = [answer for answer in self._answers() if not answer.is_ended]
            for answer in active:
                error = ServerUnavailable("the server is stopping and has cut this answer; ask again later")
                self._interrupt(answer, error)
        return len(active)

    def _observe(self, answer: EngineAnswer, num_tokens: int) -> None:
        if not num_tokens:
            return
        now = time.monotonic()
        stats = DecoderStats(num_active=self.num_active, num_tokens=num_tokens)
        if answer.last_token_time:
            stats.inter_token_seconds.append(now - answer.last_token_time)
        else:
            stats.ttft_seconds.append(now - answer.announced.arrival)
        answer.last_token_time = now
        self.metrics.observe(stats)


# The engine's config needs these of every request, also of one that only stops another.
STOP_BESIDES = {
    "input_ids": np.zeros((1, 1), np.int32),
    "input_lengths": np.ones((1, 1), np.int32),
    "request_output_len": np.ones((1, 1), np.int32),
}


def read_tokens(inputs: Tensors) -> tuple[list[int], list[float]]:
    """Return the ids of one of the engine's responses, and as many log-probabilities.

    output_ids: INT32 (1, 1, N), padded beyond sequence_length. output_log_probs: FP32 (1, 1, M), of all tokens so far.
    """
    for name in ("output_ids", "sequence_length", "output_log_probs"):
        if name not in inputs:
            raise InvalidRequest(f"{name} is missing; postprocessing reads the responses of TensorRT-LLM's backend")
    length = int(inputs["sequence_length"].reshape(-1)[0])
    token_ids = inputs["output_ids"].reshape(-1)[:length].tolist()
    log_probabilities = inputs["output_log_probs"].reshape(-1).tolist()
    if len(log_probabilities) < len(token_ids):
        raise RefragError(f"the engine sent {len(log_probabilities)} log-probabilities for {len(token_ids)} tokens")
    return token_ids, log_probabilities[len(log_probabilities) - len(token_ids) :]
