"""REFRAG: retrieved passages reach the decoder as one vector per chunk, and only the chunks that matter in full.

What a program needs that answers in its own process, or runs a server of its own:

    pipeline = Pipeline(load_checkpoint("checkpoints/world"))
    answer = pipeline.answer(Request("Which animal does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]))

Names are loaded when they are first used, so that what needs no torch does not load it.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refrag.embedded.server import EmbeddedServer
    from refrag.model.checkpoint import load_checkpoint
    from refrag.pipeline import Answer, Pipeline
    from refrag.request import ExpansionOptions, Request, SamplingParams

    __version__: str

__all__ = [
    "Answer",
    "EmbeddedServer",
    "ExpansionOptions",
    "Pipeline",
    "Request",
    "SamplingParams",
    "__version__",
    "load_checkpoint",
]

_PLACES = {
    "Answer": "refrag.pipeline",
    "EmbeddedServer": "refrag.embedded.server",
    "ExpansionOptions": "refrag.request",
    "Pipeline": "refrag.pipeline",
    "Request": "refrag.request",
    "SamplingParams": "refrag.request",
    "load_checkpoint": "refrag.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("refrag")
    if name not in _PLACES:
        raise AttributeError(f"module 'refrag' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
