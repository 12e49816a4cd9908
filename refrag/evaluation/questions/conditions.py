"""Conditions of an evaluation on a question set, as they are written on the command line.

none                    no context, read by the plain decoder
plain                   all passages as tokens, read by the plain decoder
plain:p=0.1             the same, cut behind as many tokens as compression with p = 0.1 takes slots
gold                    the passages with the evidence alone, read by the plain decoder
p=0                     every chunk compressed
p=0.1:POLICY            a tenth of the chunks expanded, chosen by a policy: learned, learned-as-served, similarity,
                        attention, attention-all-heads (of the middle layers, though the checkpoint names some),
                        base-similarity (the encoder's as it was before training), random, oracle, or any other that
                        is served
p=0:shuffled, p=0:zeroed, p=0.1:POLICY:shuffled …   controls

k=8:… in front sets another chunk size than the checkpoint's.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from refrag.errors import InvalidRequest
from refrag.evaluation.conditions import CONTROLS, Condition, ContextForm, Embeddings, compressed

DEFAULT_CONDITIONS = (
    "none",
    "gold",
    "plain",
    "p=0",
    *(
        f"p={fraction}:{policy}"
        for fraction in ("0.1", "0.2")
        for policy in ("learned", "similarity", "random", "oracle")
    ),
)
PLAIN_FORMS: dict[str, ContextForm] = {"none": "none", "plain": "full", "gold": "gold"}
NAMES = {form: name for name, form in PLAIN_FORMS.items()} | {"truncated": "plain"}
# The served policy that heeds no budget.
EVERYTHING = "all"
NUMBER = re.compile(r"([kp])=([\d.]+)")


def parse_conditions(texts: Sequence[str], chunk_size: int) -> list[Condition]:
    """Return the conditions, each once, with what every report has: no context, plain, and the controls at p = 0.

    Raises InvalidRequest for a text of another form.
    """
    asked = [parse_condition(text, chunk_size) for text in texts]
    sizes = dict.fromkeys(one.chunk_size for one in asked if one.form == "compressed")
    controls = [replace(compressed(size), embeddings=kind) for size in sizes for kind in ("true", *CONTROLS)]
    return list(dict.fromkeys([Condition("none", chunk_size), Condition("full", chunk_size), *asked, *controls]))


def parse_condition(text: str, chunk_size: int) -> Condition:
    """Return the condition, at this chunk size unless it names another; raise InvalidRequest for another form."""
    words, numbers = _split(text)
    form = PLAIN_FORMS.get(words[0]) if words else None
    if form is not None and not numbers and len(words) == 1:
        return Condition(form, chunk_size)
    size, fraction = int(numbers.get("k", chunk_size)), numbers.get("p")
    if fraction is None or not 0 <= fraction <= 1 or size < 1:
        raise _unknown(text)
    if form == "full" and len(words) == 1:
        return Condition("truncated", size, expand_fraction=fraction)
    embeddings = words.pop() if words and words[-1] in CONTROLS else "true"
    if form is not None or len(words) != (fraction > 0):
        raise _unknown(text)
    if words[:1] == [EVERYTHING]:
        raise InvalidRequest(f"{text!r}: {EVERYTHING} expands every chunk, whatever p is; write p=1:learned for that")
    selection = words[0].replace("-", " ") if words else "none"
    return compressed(size, selection, fraction, cast(Embeddings, embeddings))


def spell(condition: Condition) -> str:
    """Return the condition's text in full: the key of its answers in files."""
    parts = [NAMES[condition.form]] if condition.form in NAMES else []
    if condition.form in ("truncated", "compressed"):
        parts += [f"k={condition.chunk_size}", f"p={condition.expand_fraction:g}"]
    parts += [] if condition.selection == "none" else [condition.selection.replace(" ", "-")]
    parts += [] if condition.embeddings == "true" else [condition.embeddings]
    return ":".join(parts)


def select_by(conditions: Iterable[Condition], selection: str) -> bool:
    """Return whether any of the conditions selects by this name."""
    return any(one.selection == selection for one in conditions)


def _split(text: str) -> tuple[list[str], dict[str, float]]:
    """Return the words of a condition and its numbers by their letters."""
    words, numbers = [], {}
    for part in text.split(":"):
        match = NUMBER.fullmatch(part)
        try:
            numbers.update({match[1]: float(match[2])} if match else {})
        except ValueError:
            raise _unknown(text) from None
        words += [] if match else [part]
    if not numbers.get("k", 1.0).is_integer():
        raise _unknown(text)
    return words, numbers


def _unknown(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"{text!r} is no condition; write none, plain, gold, plain:p=0.1, p=0, p=0.1:POLICY or p=0:shuffled, with k=8: "
        "in front for another chunk size; p is 0 to 1, and above 0 it needs a policy"
    )
