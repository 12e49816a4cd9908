"""A request on its way through the engine."""

from dataclasses import dataclass

from refrag.decoders.base import MixedPrompt
from refrag.engine.generation import Generation
from refrag.engine.request import EngineRequest
from refrag.engine.runner import Segment
from refrag.engine.scheduler import Sequence
from refrag.engine.sensing import Sensing


@dataclass(eq=False, kw_only=True)
class Task(Sequence):
    """A request on its way through the engine.

    prompt: what is computed, before what is generated. sensing: until the chunks to expand are chosen; else None.
    admitted_at, token_at: the clock's seconds at admission and at the latest token; None before.
    """

    request: EngineRequest
    generation: Generation
    prompt: MixedPrompt
    sensing: Sensing | None = None
    admitted_at: float | None = None
    token_at: float | None = None

    def segment(self, start: int, stop: int) -> Segment:
        if self.sensing is None:
            return Segment(self.prompt, self.generation.token_ids, self.runs, start, stop)
        return Segment(self.prompt, self.sensing.token_ids, self.runs, start, stop, watch=self.sensing.current.watch)
