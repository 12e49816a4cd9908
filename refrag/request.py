"""Requests and their options, checked when made, for the server and the in-process pipeline alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from refrag.errors import InvalidRequest
from refrag.history import Pair, Turn, pair_turns

# Policies with a fixed budget, whatever expand_fraction the request gives.
EXPAND_NOTHING, EXPAND_ALL = "none", "all"
# Below these, dividing by them overflows.
MIN_TEMPERATURE = MIN_REPETITION_PENALTY = 0.01
# Each token is compared with every stop word, on the one thread that all requests share.
MAX_STOP_WORDS, MAX_STOP_WORD_CHARACTERS = 16, 256
# Each takes a step of the decoder before the first token that is sent.
MAX_SENSE_TOKENS = 16


@dataclass(frozen=True)
class ExpansionOptions:
    """Options for what the decoder reads in full. Raises InvalidRequest for a value that is not allowed.

    expand_fraction: share of the chunks to expand, 0 (none) to 1 (all: the plain decoder); their number is rounded
        down.
    max_prompt_slots: slots that the whole prompt may take at most; None for no limit but the window. As many chunks are
        expanded as fit whichever they are, and no more than the fraction.
    policy: what chooses them, a name in `refrag.policies.POLICIES`; "none" and "all" ignore the fraction.
    seed: for policies that draw at random.
    gives_way: whether fewer chunks are expanded where the window would not hold as many with the answer, instead of
        refusing the request; so it is for one that leaves the share to the server.
    sense_tokens: tokens that the policy "attention" lets the decoder generate, and never sends, to see where they look
        besides the question.
    min_confidence: share of the policy's weight that the expanded chunks are to hold; where those within the budget
        hold less, the budget is raised once. 0 never raises it.
    """

    expand_fraction: float = 0.1
    policy: str = "learned"
    seed: int = 0
    max_prompt_slots: int | None = None
    gives_way: bool = False
    sense_tokens: int = 0
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        check_min_confidence(self.min_confidence)
        if not 0 <= self.sense_tokens <= MAX_SENSE_TOKENS:
            raise InvalidRequest(f"sense_tokens is {self.sense_tokens}; allowed is 0 to {MAX_SENSE_TOKENS}")
        if self.max_prompt_slots is not None and self.max_prompt_slots < 1:
            raise InvalidRequest(f"max_prompt_slots is {self.max_prompt_slots}; it must be at least 1")
        if not (math.isfinite(self.expand_fraction) and 0 <= self.expand_fraction <= 1):
            raise InvalidRequest(
                f"expand_fraction is {self.expand_fraction}; "
                "allowed is 0 (compress every chunk) to 1 (expand every chunk)"
            )


@dataclass(frozen=True)
class Fallback:
    """The raised budget of a selection that is not sure enough. Raises InvalidRequest for a value that is not allowed.

    min_confidence: share of the policy's weight that the expanded chunks are to hold. budget: how many there may be.
    """

    min_confidence: float
    budget: int

    def __post_init__(self) -> None:
        check_min_confidence(self.min_confidence)


def check_min_confidence(min_confidence: float) -> None:
    if not 0 <= min_confidence <= 1:
        raise InvalidRequest(
            f"min_confidence is {min_confidence}; allowed is 0 (the budget is never raised) to 1 (expand every chunk "
            "that weighs anything, as far as there is room)"
        )


@dataclass(frozen=True)
class Request:
    """A question with its retrieved passages, if any, and the turns before it.

    history: turns of the user and the assistant, from the first on, which end with the assistant's.
    whole_history: whether to refuse the request rather than leave out turns for which the window has no room.
    Raises InvalidRequest for an empty question and for turns that do not alternate.
    """

    question: str
    passages: Sequence[str] = ()
    expansion: ExpansionOptions = field(default_factory=ExpansionOptions)
    history: Sequence[Turn] = ()
    whole_history: bool = False

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidRequest("text_input is empty; it must hold the question")
        pair_turns(self.history)

    @property
    def earlier_pairs(self) -> list[Pair]:
        return pair_turns(self.history)


@dataclass(frozen=True)
class SamplingParams:
    """Options for choosing tokens and ending the answer. Raises InvalidRequest for values that are not allowed.

    max_tokens: the answer ends after so many tokens.
    temperature: 0 takes the likeliest token; else at least MIN_TEMPERATURE.
    top_k, top_p: limits of the choice; None for no limit. seed: None for a fresh one.
    repetition_penalty: lowers the logits of tokens that the answer already has: those above 0 are divided by it, those
        below 0 multiplied. 1 changes nothing; at least MIN_REPETITION_PENALTY.
    min_tokens: no end-of-sequence token ends the answer earlier; a stop word still does.
    stop_words: the answer ends before the first of them.
    log_probabilities: whether to return each token's log-probability, before temperature and limits.
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
                f"temperature is {self.temperature}; it must be 0 (greedy) or at least {MIN_TEMPERATURE:g}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InvalidRequest(f"top_k is {self.top_k}; it must be at least 1; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p}; allowed is more than 0, up to 1; leave it out for no limit")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty >= MIN_REPETITION_PENALTY):
            raise InvalidRequest(
                f"repetition_penalty is {self.repetition_penalty}; it must be at least {MIN_REPETITION_PENALTY:g}; "
                "1 changes nothing"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}; allowed is 0 to max_tokens, which is {self.max_tokens}"
            )
        longest = max(map(len, self.stop_words), default=0)
        if len(self.stop_words) > MAX_STOP_WORDS or longest > MAX_STOP_WORD_CHARACTERS:
            raise InvalidRequest(
                f"stop_words holds {len(self.stop_words)} words of up to {longest} characters; "
                f"allowed are up to {MAX_STOP_WORDS} words of up to {MAX_STOP_WORD_CHARACTERS} characters"
            )
        if "" in self.stop_words:
            raise InvalidRequest("stop_words holds an empty word, which would stop every answer at once; remove it")
