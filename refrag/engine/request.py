"""What the engine is asked for, and what it gives back."""

from dataclasses import dataclass, field

from refrag.engine.generation import Delta, MixedPrompt
from refrag.errors import RefragError
from refrag.request import SamplingParams


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to answer.

    request_id: for the caller's own use; "" for none. priority: lower goes first.
    deadline: time.monotonic() seconds. arrival: the same clock, when the caller began to wait.
    keys: of the prompt's full blocks (`prefix.block_keys`); without them nothing of it is reused.
    """

    prompt: MixedPrompt = field(repr=False)
    sampling: SamplingParams
    request_id: str = ""
    deadline: float = float("inf")
    priority: int = 0
    arrival: float = 0.0
    keys: list[bytes] = field(default_factory=list, repr=False)

    @property
    def max_slots(self) -> int:
        """All slots whose keys and values are ever needed; those of the last token are not."""
        return len(self.prompt.input_ids) + self.sampling.max_tokens - 1


@dataclass(frozen=True)
class Output:
    """A request's next delta, or the error that ends it."""

    request: Request
    delta: Delta | None = None
    error: RefragError | None = None

    @property
    def is_last(self) -> bool:
        return self.delta is None or self.delta.finish_reason is not None


@dataclass
class StepStats:
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
