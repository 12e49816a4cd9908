"""Answers a share of the requests a second time, from the plain prompt, and measures how far compression moved them.

    answer sent ─► queue ─► plain prompt: the plain decoder's greedy answer, its distribution before each token
                        └─► mixed prompt, along that answer: its own distributions ─► fidelity ─► metrics, log

Both run in the decoder's background, one request at a time, when the answer has been sent: no caller waits for them.
The figures are those of the evaluation (`refrag.teacher_forcing.fidelity`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from refrag.decoders.base import Choice, DecoderBackend, DecoderRequest, Delta, MixedPrompt, Sink, check_prompt
from refrag.errors import RefragError
from refrag.request import SamplingParams
from refrag.serving.shadow_metrics import Comparison, ShadowMetrics
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.fidelity import Fidelity

log = logging.getLogger(__name__)

# Drawn requests that may wait for the decoder to be idle; each keeps its prompts and chunk embeddings in memory.
MAX_QUEUED = 16
# Without an idle moment for so long, a drawn request is given up.
PATIENCE_SECONDS = 600.0

# V vocabulary size


@dataclass(eq=False)
class Shadow:
    """A drawn request: what was answered, and the plain decoder's answer as far as it has come.

    policy: which policy chose the expanded chunks.
    """

    request: DecoderRequest
    plain: MixedPrompt
    policy: str
    num_chunks: int
    num_expanded: int
    token_ids: list[int] = field(default_factory=list)
    distributions: list[TopDistribution] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    num_agreed: int = 0

    def __post_init__(self) -> None:
        self.mixed = self.request.prompt

    def note_choice(self, choice: Choice) -> None:
        """Take note of what the decoder itself has chosen to expand."""
        self.mixed, self.num_expanded = choice.prompt, len(choice.expanded)

    def choose_plainly(self, logits: Tensor) -> int:
        """Keep the plain decoder's distribution, and take its likeliest token.  (V,)"""
        self.distributions.append(TopDistribution.of(logits[None]))
        self.token_ids.append(int(logits.argmax()))
        return self.token_ids[-1]

    def compare(self, logits: Tensor) -> int:
        """Compare the mixed prompt's distribution with the plain one, and take the plain decoder's token.  (V,)"""
        number = len(self.divergences)
        self.divergences.append(max(0.0, float(self.distributions[number].divergences(logits[None]))))
        self.num_agreed += int(logits.argmax()) == self.token_ids[number]
        return self.token_ids[number]

    @property
    def comparison(self) -> Comparison:
        count = len(self.divergences)
        fidelity = Fidelity(sum(self.divergences) / count, self.num_agreed / count)
        expanded = min(1.0, self.num_expanded / self.num_chunks)
        return Comparison(self.request.request_id, self.policy, expanded, self.divergences[0], fidelity, count)


class Shadowing:
    """The queue of drawn requests, and the one that is being compared."""

    def __init__(self, backend: DecoderBackend, metrics: ShadowMetrics) -> None:
        self.backend, self.metrics = backend, metrics
        self.lock = threading.Lock()
        self.queued: deque[Shadow] = deque()
        self.is_busy, self.is_closed = False, False

    def watch(self, sink: Sink, shadow: Shadow) -> Sink:
        """Return a sink that queues the request once its answer is complete.

        Raises InvalidRequest for a plain prompt with ids that are no tokens.
        """
        num_slots = len(shadow.plain.input_ids) + shadow.request.sampling.max_tokens
        if not getattr(self.backend, "lets_choose", False):
            self.metrics.skip("decoder")
        elif num_slots > self.backend.limits.window:
            self.metrics.skip("too_long")
        else:
            check_prompt(shadow.plain, shadow.request.sampling, self.backend.limits)
            return ShadowedSink(sink, shadow, self._queue)
        return sink

    def close(self) -> None:
        """Take no further request; what the decoder is comparing ends with the decoder."""
        with self.lock:
            self.is_closed = True
            self.queued.clear()

    def _queue(self, shadow: Shadow) -> None:
        with self.lock:
            if self.is_closed:
                return
            is_full = len(self.queued) == MAX_QUEUED
            if not is_full:
                self.queued.append(shadow)
        if is_full:
            self.metrics.skip("busy")
        self._start_next()

    def _start_next(self) -> None:
        with self.lock:
            if self.is_busy or self.is_closed or not self.queued:
                return
            shadow, self.is_busy = self.queued.popleft(), True
        self._run(shadow, shadow.plain, shadow.choose_plainly, lambda: self._compare(shadow))

    def _compare(self, shadow: Shadow) -> None:
        self._run(shadow, shadow.mixed, shadow.compare, lambda: self._finish(shadow))

    def _finish(self, shadow: Shadow) -> None:
        self.metrics.observe(shadow.comparison)
        self._end()

    def _run(
        self, shadow: Shadow, prompt: MixedPrompt, choose: Callable[[Tensor], int], then: Callable[[], None]
    ) -> None:
        request = DecoderRequest(
            prompt=prompt,
            sampling=SamplingParams(max_tokens=shadow.request.sampling.max_tokens),
            deadline=time.monotonic() + PATIENCE_SECONDS,
            arrival=time.monotonic(),
            choose=choose,
            is_background=True,
        )
        try:
            self.backend.submit(request, ComparisonSink(then, self._give_up))
        except RefragError as error:
            self._give_up(error)

    def _give_up(self, error: RefragError) -> None:
        log.warning("a shadowed request could not be compared: %s", error)
        self.metrics.skip("failed")
        self._end()

    def _end(self) -> None:
        with self.lock:
            self.is_busy = False
        self._start_next()


class ShadowedSink:
    """A caller's sink, and what to do with the request once its answer is complete."""

    def __init__(self, sink: Sink, shadow: Shadow, then: Callable[[Shadow], None]) -> None:
        self.sink, self.shadow, self.then = sink, shadow, then
        self.is_abandoned, self.fail = sink.is_abandoned, sink.fail

    def choose(self, choice: Choice) -> None:
        self.shadow.note_choice(choice)
        self.sink.choose(choice)

    def send(self, delta: Delta) -> None:
        self.sink.send(delta)
        if delta.finish_reason is not None:
            self.then(self.shadow)


class ComparisonSink:
    """The sink of an answer that nobody reads."""

    def __init__(self, then: Callable[[], None], fail: Callable[[RefragError], None]) -> None:
        self.then, self.fail = then, fail

    def choose(self, choice: Choice) -> None:
        """Do nothing: nothing is left to choose."""

    def send(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.then()

    def is_abandoned(self) -> bool:
        return False
