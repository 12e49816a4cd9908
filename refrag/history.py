"""Earlier turns of a conversation: one JSON object each, or plain texts that alternate; checked when they are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from refrag.errors import InvalidRequest
from refrag.json_text import parse_json

USER, ASSISTANT = "user", "assistant"
# The turns of a conversation come in this order, again and again, and the question follows.
ROLES = (USER, ASSISTANT)
KEYS = {"role", "content"}
FORM = '{"role": "user", "content": "…"}'


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, of the user or the assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Pair:
    """A user's turn with the assistant's answer to it."""

    question: str
    answer: str


def read_turns(elements: Sequence[str]) -> list[Turn]:
    """Return the turns; raise InvalidRequest that names the element at fault.

    Either all elements are JSON objects, or all are texts of the user and the assistant in turn.
    """
    are_objects = [element.lstrip().startswith("{") for element in elements]
    if not any(are_objects):
        return [Turn(ROLES[number % 2], element) for number, element in enumerate(elements)]
    if not all(are_objects):
        number = are_objects.index(False)
        raise InvalidRequest(
            f"history[{number}] is plain text beside JSON objects; send {FORM} for every turn, or text for every turn"
        )
    return [_read_turn(f"history[{number}]", element) for number, element in enumerate(elements)]


def pair_turns(turns: Sequence[Turn]) -> list[Pair]:
    """Return the turns in pairs; raise InvalidRequest unless they alternate from the user's to the assistant's."""
    for number, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise InvalidRequest(f"history[{number}] has the role {turn.role!r}; allowed are {' and '.join(ROLES)}")
        if not turn.content.strip():
            raise InvalidRequest(f"history[{number}] is empty; leave out the turn and its counterpart")
        if turn.role != ROLES[number % 2]:
            raise InvalidRequest(_explain_order(number, turn))
    if len(turns) % 2:
        raise InvalidRequest(
            f"history ends with a user's turn, history[{len(turns) - 1}], and text_input is one more in a row; add the "
            "assistant's answer, or leave the turn out"
        )
    return [Pair(question.content, answer.content) for question, answer in zip(turns[::2], turns[1::2], strict=True)]


def _explain_order(number: int, turn: Turn) -> str:
    if number == 0:
        return "history begins with the assistant; begin with a user's turn, or leave the assistant's first one out"
    return (
        f"history[{number}] is the second turn of the {turn.role} in a row; turns alternate, so join the two into one"
    )


def _read_turn(place: str, element: str) -> Turn:
    try:
        values = parse_json(element, place)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{place} begins with a brace and is not JSON ({error}); send {FORM}, also for text that begins so"
        ) from None
    if set(values) != KEYS:
        raise InvalidRequest(f"{place} has the keys {sorted(values)}; it must have {sorted(KEYS)}: {FORM}")
    for key in sorted(KEYS):
        if not isinstance(values[key], str):
            raise InvalidRequest(f"{place} has {key} {json.dumps(values[key])[:40]}; give text")
    return Turn(values["role"], values["content"])
