"""What a caller asks for, checked once: the same types stand behind the server and the in-process pipeline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from refrag.errors import InvalidRequest

# Below this, dividing by the temperature overflows.
MIN_TEMPERATURE = 0.01
# Every token is held against every stop word, on the thread that all requests share.
MAX_STOP_WORDS, MAX_STOP_WORD_CHARACTERS = 16, 256


@dataclass(frozen=True)
class ExpansionOptions:
    """How much of the context to read in full.

    expand_fraction: share of the chunks to expand, 0 (none) to 1 (all: the plain decoder); always rounded down.
    policy: what chooses them, one of `refrag.policies.POLICIES`; "none" and "all" expand nothing and everything
        whatever the fraction.
    seed: for policies that draw at random.
    """

    expand_fraction: float = 0.1
    policy: str = "learned"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.expand_fraction) and 0 <= self.expand_fraction <= 1):
            raise InvalidRequest(
                f"expand_fraction is {self.expand_fraction:g}; "
                "allowed is 0 (compress every chunk) to 1 (expand every chunk)"
            )


@dataclass(frozen=True)
class Request:
    """A question over retrieved passages; without any, the question alone."""

    question: str
    passages: Sequence[str] = ()
    expansion: ExpansionOptions = field(default_factory=ExpansionOptions)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidRequest("text_input is empty; it must hold the question")


@dataclass(frozen=True)
class SamplingParams:
    """How to pick tokens, and when to stop.

    temperature: 0 takes the likeliest token. top_k, top_p, seed: None means no limit, and a fresh seed.
    repetition_penalty: divides the odds of tokens that the answer has already, 1 changes nothing.
    min_tokens: the answer cannot end by itself before; a stop word still ends it.
    stop_words: generation ends before the first of them; they are not part of the answer.
    log_probabilities: tell each token's, before temperature and limits.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_words: tuple[str, ...] = ()
    log_probabilities: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.temperature != 0 and not (math.isfinite(self.temperature) and self.temperature >= MIN_TEMPERATURE):
            raise InvalidRequest(
                f"temperature is {self.temperature:g}; it must be 0 (greedy) or at least {MIN_TEMPERATURE:g}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InvalidRequest(f"top_k is {self.top_k}; it must be at least 1; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p:g}; allowed is more than 0, up to 1; leave it out for no limit")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InvalidRequest(
                f"repetition_penalty is {self.repetition_penalty:g}; it must be more than 0, and 1 to change nothing"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}; allowed is 0 to max_tokens, which is {self.max_tokens}"
            )
        longest = max(map(len, self.stop_words), default=0)
        if len(self.stop_words) > MAX_STOP_WORDS or longest > MAX_STOP_WORD_CHARACTERS:
            raise InvalidRequest(
                f"stop_words holds {len(self.stop_words)} words of up to {longest} characters; "
                f"allowed are {MAX_STOP_WORDS} words of {MAX_STOP_WORD_CHARACTERS} characters"
            )
        if "" in self.stop_words:
            raise InvalidRequest("stop_words holds an empty word, which would stop every answer at once; remove it")
