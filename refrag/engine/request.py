"""Requests to the engine, and its outputs."""

from dataclasses import dataclass, field

from refrag.decoders.base import DecoderRequest, Delta
from refrag.errors import RefragError


@dataclass(frozen=True, eq=False)
class EngineRequest(DecoderRequest):
    """A decoder's request with hashes of its prompt's blocks.

    keys: one for each full block (`prefix.block_keys`); without them nothing of the prompt is reused.
    """

    keys: list[bytes] = field(default_factory=list, repr=False)

    @property
    def max_slots(self) -> int:
        """Slots whose keys and values are ever needed: all but the last token's."""
        return len(self.prompt.input_ids) + self.sampling.max_tokens - 1


@dataclass(frozen=True)
class Output:
    """A request's next delta, or the error that ends it."""

    request: EngineRequest
    delta: Delta | None = None
    error: RefragError | None = None

    @property
    def is_last(self) -> bool:
        return self.delta is None or self.delta.finish_reason is not None
