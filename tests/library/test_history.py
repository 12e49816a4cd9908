"""Earlier turns: what is read, and what is refused with the place and the remedy."""

import json

import pytest

from refrag.errors import InvalidRequest
from refrag.history import Pair, Turn, pair_turns, read_turns
from refrag.request import Request


def turn(role, content):
    return json.dumps({"role": role, "content": content})


def test_a_character_that_json_spells_by_two_surrogates_is_text():
    assert read_turns(['{"role": "user", "content": "\\ud83c\\udfb5"}']) == [Turn("user", "🎵")]


def test_objects_and_alternating_texts_are_the_same_turns():
    turns = [Turn("user", "Who?"), Turn("assistant", "Ada."), Turn("user", "{When}?"), Turn("assistant", "In May.")]
    assert read_turns([turn(each.role, each.content) for each in turns]) == turns
    assert read_turns([each.content for each in turns][:2]) == turns[:2]
    assert pair_turns(turns) == [Pair("Who?", "Ada."), Pair("{When}?", "In May.")]
    assert read_turns([]) == []


REFUSED = {
    "not JSON": (["{oops", turn("assistant", "b")], r"history\[0\] begins with a brace and is not JSON"),
    "deep JSON": (['{"a":' * 100_000, turn("assistant", "b")], r"history\[0\] begins with a brace and is not JSON"),
    "text among objects": ([turn("user", "a"), "b"], r"history\[1\] is plain text beside JSON objects"),
    "half a character": (
        [turn("user", "a"), '{"role": "assistant", "content": "hi \\ud83d"}'],
        r"history\[1\] has the lone surrogate '\\ud83d'",
    ),
    "no role": ([json.dumps({"content": "a"}), turn("assistant", "b")], r"history\[0\] has the keys \['content'\]"),
    "a name": (['{"role": "user", "content": "a", "name": "x"}', "{}"], r"history\[0\] has the keys .*'name'"),
    "parts": (
        ['{"role": "user", "content": [1]}', turn("assistant", "b")],
        r"history\[0\] has content \[1\]; give text",
    ),
    "null": (['{"role": null, "content": "a"}', turn("assistant", "b")], r"history\[0\] has role null"),
    "a system turn": ([turn("system", "a")], r"history\[0\] has the role 'system'; allowed are user and assistant"),
    "two in a row": ([turn("user", "a"), turn("user", "b")], r"history\[1\] is the second turn of the user in a row"),
    "assistant first": ([turn("assistant", "a")], "history begins with the assistant"),
    "empty": ([turn("user", "a"), turn("assistant", " \n")], r"history\[1\] is empty"),
    "user last": ([turn("user", "a")], r"history ends with a user's turn, history\[0\]"),
}


@pytest.mark.parametrize("elements, message", REFUSED.values(), ids=REFUSED)
def test_what_is_no_conversation_is_refused_by_its_place(elements, message):
    with pytest.raises(InvalidRequest, match=message):
        Request("Who?", history=read_turns(elements))
