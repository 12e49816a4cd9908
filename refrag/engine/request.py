"""Requests to the engine, and its outputs."""

from dataclasses import dataclass, field

from refrag.decoders.base import Choice, DecoderRequest, Delta
from refrag.errors import RefragError


@dataclass(frozen=True, eq=False)
class EngineRequest(DecoderRequest):
    """A decoder's request with hashes of its prompt's blocks.

    keys: one for each full block (`prefix.block_keys`); without them nothing of the prompt is reused.
    """

    keys: list[bytes] = field(default_factory=list, repr=False)

    @property
    def max_slots(self) -> int:
        """Slots whose keys and values the answer ever needs: all but the last token's."""
        num_added = 0 if self.to_sense is None else self.to_sense.most_added_slots
        return len(self.prompt.input_ids) + num_added + self.sampling.max_tokens - 1


@dataclass(frozen=True)
class Output:
    """A request's next delta, the error that ends it, or its choice of chunks."""

    request: EngineRequest
    delta: Delta | None = None
    error: RefragError | None = None
    choice: Choice | None = None

    @property
    def is_last(self) -> bool:
        return self.error is not None or (self.delta is not None and self.delta.finish_reason is not None)
