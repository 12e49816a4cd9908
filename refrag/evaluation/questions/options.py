"""Options of an evaluation on a question set, from which the command line is made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from refrag.data.questions.read import DEFAULT_DEPTH
from refrag.errors import InvalidRequest
from refrag.retrieval.bm25 import Strength

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class QuestionOptions:
    """Options of what is asked, and how; raises InvalidRequest for a value out of range."""

    num_rows: int | None = field(
        default=None, metadata={"type": int, "help": "rows to draw by the seed; a larger number adds to a run"}
    )
    num_passages: int = field(default=10, metadata={"help": "passages per question; a document is read whole"})
    strength: Strength = field(
        default="strong",
        metadata={
            "choices": ["strong", "weak"],
            "help": "retriever: the best passages, or random ones of the best fifty",
        },
    )
    keep_gold: bool = field(default=False, metadata={"help": "put passages with the evidence in if not retrieved"})
    source_order: bool = field(default=False, metadata={"help": "leave the passages in the order of retrieval"})
    max_tokens: int = field(default=32, metadata={"help": "most tokens of an answer"})
    window: int | None = field(
        default=None, metadata={"type": int, "help": "slots of prompt and answer (default: each decoder's own)"}
    )
    history_turns: int | None = field(
        default=None, metadata={"type": int, "help": "last turns of a conversation to send (default: all)"}
    )
    depth: int = field(default=DEFAULT_DEPTH, metadata={"help": "passages to search for, where a question lists none"})
    dtype: Dtype = field(
        default="float32",
        metadata={"choices": ["float32", "bfloat16"], "help": "type that the decoders compute in; not the encoder"},
    )
    seed: int = field(default=0, metadata={"help": "draws the rows, the order of passages and the resamples"})

    def __post_init__(self) -> None:
        for one in fields(self):
            value, lowest = getattr(self, one.name), 0 if one.name in ("history_turns", "seed") else 1
            if type(value) is int and value < lowest:
                raise InvalidRequest(f"{one.name} is {value}; it must be at least {lowest}")
        if (self.history_turns or 0) % 2:
            raise InvalidRequest(
                f"history_turns is {self.history_turns}; turns are sent in pairs of a question and its answer: give an "
                "even number"
            )

    def identity(self) -> Mapping[str, Any]:
        """Return the options on which an answer depends: two runs that differ in one cannot share a file."""
        return {name: value for name, value in asdict(self).items() if name != "num_rows"}
