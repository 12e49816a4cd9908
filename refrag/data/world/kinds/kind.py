"""What a kind of entity is: how it is named, and its attributes with the sentences that tell of them.

The last statement and the last question of every attribute are kept from training, to see what a model makes of
phrasing that it never met.
"""

import random
from dataclasses import dataclass, field

from refrag.data.world import vocabulary as words


@dataclass(frozen=True)
class Attribute:
    """One property: `{e}` in a sentence stands for the entity, `{v}` for the value, which each statement has once.

    noun: what the property is called, as in "the same {noun}".
    values: words to choose from; or pattern: an exact string, where A is any letter, 0 any digit and 1 any but zero.
    relation: the value is the full name of another entity, of this kind, called `phrase`: "the owner of {e}".
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
        """Whether the value is a string that cannot be guessed from its neighbours: a code, a number, a date."""
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
    """A kind of entity: how it is named, how it is referred to, and what can be told of it.

    reference: what a later turn of a dialogue calls it.
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
