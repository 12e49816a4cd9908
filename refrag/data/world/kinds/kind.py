"""Classes of a kind of entity and of its attributes, with the names and the sentences that tell of them.

The last statement and the last question of every attribute are kept from training, to see what a model makes of
phrasing that it never met.
"""

import random
from dataclasses import dataclass, field

from refrag.data.world import vocabulary as words


@dataclass(frozen=True)
class Attribute:
    """Property of an entity, with sentences in which `{e}` stands for the entity and `{v}` for the value.

    noun: name of the property, as in "the same {noun}".
    statements: sentences that tell the value; each has `{v}` once.
    questions: sentences that ask for the value.
    values: words to choose the value from.
    pattern: form of an exact value, where A is any letter, 0 any digit and 1 any digit but zero.
    relation: kind of another entity, whose full name is the value.
    phrase: description of that other entity, such as "the owner of {e}".

    An attribute has one of values, pattern and relation.
    """

    name: str
    noun: str
    statements: list[str]
    questions: list[str]
    values: list[str] = field(default_factory=list)
    pattern: str = ""
    relation: str = ""
    phrase: str = ""

    @property
    def is_exact(self) -> bool:
        """Return whether the value cannot be guessed from the words around it: a code, a number, a date."""
        return bool(self.pattern) or self.values in (words.YEARS, words.DAYS)

    @property
    def is_year(self) -> bool:
        return self.values == words.YEARS

    def draw_value(self, rng: random.Random) -> str:
        if not self.pattern:
            return rng.choice(self.values)
        signs = {"A": words.LETTERS, "0": words.DIGITS, "1": words.DIGITS[1:]}
        return "".join(rng.choice(signs.get(sign, sign)) for sign in self.pattern)


@dataclass(frozen=True)
class Kind:
    """Kind of entity: its names, the words that refer to it, and what can be told of it.

    full, short: templates of its names, with `{first}` and `{last}`.
    reference: words that refer to it in a later turn of a dialogue.
    asides: sentences about it that tell nothing to ask for.
    """

    name: str
    first_names: list[str]
    last_names: list[str]
    full: str
    short: str
    pronouns: list[str]
    reference: str
    attributes: list[Attribute]
    asides: list[str]
