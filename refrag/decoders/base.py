"""What a decoder is to the rest of the project: mixed prompts in, deltas out, each request by itself.

service ── submit(DecoderRequest, Sink) ─► backend ── send(Delta) … send(last Delta) | fail(error) ─► Sink
        ── stop(request_id) ────────────►
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from refrag.errors import InvalidRequest, RefragError
from refrag.request import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

# S slots, R rows of chunk embeddings, D decoder width

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class MixedPrompt:
    """input_ids (S,): an id ≥ vocab_size is row (id − vocab_size) of chunk_embeddings (R, D)."""

    input_ids: "Tensor"
    chunk_embeddings: "Tensor"


@dataclass(frozen=True, eq=False)
class DecoderRequest:
    """A prompt to answer.

    request_id: what `stop` names; "" for none. priority: lower goes first.
    deadline: time.monotonic() seconds. arrival: the same clock, when the caller began to wait.
    """

    prompt: MixedPrompt = field(repr=False)
    sampling: SamplingParams
    request_id: str = ""
    deadline: float = float("inf")
    priority: int = 0
    arrival: float = 0.0


@dataclass(frozen=True)
class Delta:
    """What one decoding step adds. Its text may lag behind its tokens; the last delta has a finish reason.

    log_probabilities: of the tokens, where the request asked for them.
    """

    text: str
    token_ids: list[int]
    log_probabilities: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Sink(Protocol):
    """Where a request's deltas go. Exactly one of a delta with a finish reason, or `fail`, comes last."""

    def send(self, delta: Delta) -> None: ...

    def fail(self, error: RefragError) -> None: ...

    def is_abandoned(self) -> bool:
        """Return whether the receiver is known to be gone; the decoder asks now and then, and ends the request."""


@dataclass(frozen=True)
class Limits:
    """What every prompt must keep to.

    vocab_size: the first id that is not a token. width: of a chunk embedding. window: slots of prompt and answer.
    """

    vocab_size: int
    width: int
    window: int


@dataclass
class DecoderStats:
    """What one step did, for metrics; times in seconds, one entry per request or token that it concerns."""

    num_active: int = 0
    num_waiting: int = 0
    num_held_blocks: int = 0
    num_blocks: int = 0
    num_computed_slots: int = 0
    num_reused_slots: int = 0
    num_preempted: int = 0
    num_tokens: int = 0
    queue_seconds: list[float] = field(default_factory=list)
    ttft_seconds: list[float] = field(default_factory=list)
    inter_token_seconds: list[float] = field(default_factory=list)


Observe = Callable[[DecoderStats], None]


class DecoderBackend(Protocol):
    """A decoder with its weights, its memory and its thread.

    settings_type: frozen dataclass of its own parameters in the config.pbtxt of the model `decoder`.
    Opened with the deployed checkpoint's folder; `observe` is called with the stats of each step as it ends.
    Raises SetupError or CheckpointError if it cannot serve this checkpoint on this machine.
    """

    settings_type: ClassVar[type[Any]]

    def __init__(self, checkpoint: Path, settings: Any, observe: Observe) -> None: ...

    @property
    def limits(self) -> Limits: ...

    def submit(self, request: DecoderRequest, sink: Sink) -> None:
        """Queue a request that `check_prompt` let pass, and return at once.

        Raises InvalidRequest (its id is in flight, or it could never be held), Overloaded, or Cancelled (stopped
        before it came); then the sink hears nothing.
        """

    def stop(self, request_id: str) -> None:
        """End the request as Cancelled. One that is still to come is refused then, one that has ended is ignored."""

    def stats(self) -> DecoderStats:
        """Return the stats of the last step."""

    def close(self) -> None:
        """End every request as Cancelled, and free what the decoder holds."""


def check_prompt(prompt: MixedPrompt, sampling: SamplingParams, limits: Limits) -> None:
    """Raise InvalidRequest unless prompt and answer fit the window and every placeholder has its row."""
    num_slots = len(prompt.input_ids)
    if num_slots == 0:
        raise InvalidRequest("the prompt has no slots; send at least a question")
    if num_slots + sampling.max_tokens > limits.window:
        raise InvalidRequest(
            f"the prompt needs {num_slots} slots and max_tokens {sampling.max_tokens} more, the decoder's window is "
            f"{limits.window}; send fewer passages, or lower expand_fraction or max_tokens"
        )
    rows, width = prompt.chunk_embeddings.shape
    if rows and width != limits.width:
        raise InvalidRequest(f"prompt_embedding_table has rows of width {width}; the decoder's width is {limits.width}")
    highest, lowest = int(prompt.input_ids.max()), int(prompt.input_ids.min())
    if lowest < 0 or highest >= limits.vocab_size + rows:
        raise InvalidRequest(
            f"input_ids range from {lowest} to {highest}; allowed is 0 to {limits.vocab_size + rows - 1}: "
            f"{limits.vocab_size} tokens, then {rows} rows of prompt_embedding_table"
        )
    if rows > num_slots:
        raise InvalidRequest(
            f"prompt_embedding_table has {rows} rows for a prompt of {num_slots} slots; send those that input_ids name"
        )
    if not _are_finite(prompt.chunk_embeddings):
        raise InvalidRequest("prompt_embedding_table holds NaN or infinity; every value must be finite")


def join_deltas(deltas: Sequence[Delta]) -> Delta:
    """Return the whole answer as one delta."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        log_probabilities=[value for delta in deltas for value in delta.log_probabilities],
        finish_reason=deltas[-1].finish_reason,
    )


def _are_finite(rows: "Tensor") -> bool:
    # Both extremes in one pass, without a mask of all rows: NaN comes out as either of them.
    if not rows.numel():
        return True
    lowest, highest = (float(extreme) for extreme in rows.aminmax())
    return math.isfinite(lowest) and math.isfinite(highest)
