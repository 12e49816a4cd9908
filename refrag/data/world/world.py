"""Makes small worlds: entities with attributes, told in varied prose, one passage about each.

Nothing in a world can be known beforehand: the values of an entity's attributes are drawn anew for every world, so a
right answer must be read from the passages. Entities for evaluation have names (pairs of name parts) that no training
world uses, and may be told of in phrasing that none uses.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from refrag.data.world.kinds import KINDS, Attribute, Kind

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Entity:
    kind: Kind
    first: str
    last: str

    @property
    def full_name(self) -> str:
        return self.kind.full.format(first=self.first, last=self.last)

    @property
    def short_name(self) -> str:
        return self.kind.short.format(first=self.first, last=self.last)


@dataclass(frozen=True)
class Fact:
    """Value of an entity's attribute, and the characters [start, stop) of passage `passage` at which it stands.

    target: number of the entity that a relation's value names; None for all other attributes.
    """

    attribute: Attribute
    value: str
    passage: int
    start: int
    stop: int
    target: int | None = None


@dataclass(frozen=True)
class World:
    """Entities with their passages: passage i tells of entity i, and holds the facts `facts[i]` in that order."""

    entities: list[Entity]
    passages: list[str]
    facts: list[list[Fact]]


@dataclass(frozen=True)
class Phrasing:
    """Choice of sentences: those of training, or those kept from it."""

    split: Split = "train"

    def choose(self, rng: random.Random, templates: list[str]) -> str:
        return rng.choice(templates[:-1]) if self.split == "train" else templates[-1]


SHORT_NAME_SHARE, PRONOUN_SHARE, ASIDE_SHARE = 0.15, 0.1, 0.4


def split_of(first: str, last: str) -> Split:
    """Return the split of a pair of name parts: one in eight is held out, by a hash that no seed changes."""
    return "heldout" if zlib.crc32(f"{first} {last}".encode()) % 8 == 0 else "train"


def make_world(rng: random.Random, num_entities: int, split: Split, phrasing: Phrasing | None = None) -> World:
    """Make a world of entities with names of `split`, and a passage about each, by default in training's phrasing."""
    entities = draw_entities(rng, num_entities, split)
    passages, facts = [], []
    for number in range(num_entities):
        text, told = _tell(rng, entities, number, phrasing or Phrasing())
        passages.append(text)
        facts.append(told)
    return World(entities, passages, facts)


def draw_entities(rng: random.Random, count: int, split: Split) -> list[Entity]:
    """Draw entities of different names, of which several may share a first or a last name."""
    entities: list[Entity] = []
    taken: set[str] = set()
    while len(entities) < count:
        kind = rng.choice(KINDS)
        entity = Entity(kind, rng.choice(kind.first_names), rng.choice(kind.last_names))
        if entity.full_name not in taken and split_of(entity.first, entity.last) == split:
            taken.add(entity.full_name)
            entities.append(entity)
    return entities


def make_document(rng: random.Random, world: World) -> str:
    """Write all passages in groups of one to three, each group told once more in other words and another order.

    So what comes next in the text often follows from what stands before it, as in a text about real things.
    """
    paragraphs: list[str] = []
    numbers = list(range(len(world.passages)))
    while numbers:
        count = rng.randint(1, 3)
        group, numbers = numbers[:count], numbers[count:]
        paragraphs += [world.passages[number] for number in group]
        paragraphs += [retell(rng, world, number) for number in rng.sample(group, len(group))]
    return "".join(f" {paragraph}\n" for paragraph in paragraphs)


def retell(rng: random.Random, world: World, number: int) -> str:
    """Write the facts of one passage in new sentences, in random order."""
    name = world.entities[number].full_name
    told = world.facts[number]
    sentences = [
        Phrasing().choose(rng, fact.attribute.statements).replace("{e}", name).replace("{v}", fact.value)
        for fact in rng.sample(told, len(told))
    ]
    return " ".join(map(_capitalised, sentences))


def _tell(rng: random.Random, entities: list[Entity], number: int, phrasing: Phrasing) -> tuple[str, list[Fact]]:
    entity = entities[number]
    text, told = "", []
    for attribute, value, target in _draw_values(rng, entities, entity):
        sentence = _sentence(rng, entity, phrasing.choose(rng, attribute.statements), first=not text)
        before, after = sentence.split("{v}")
        start = len(text) + bool(text) + len(before)
        text = _append(text, _capitalised(before + value + after))
        told.append(Fact(attribute, value, number, start, start + len(value), target))
        if rng.random() < ASIDE_SHARE:
            text = _append(text, _capitalised(_sentence(rng, entity, rng.choice(entity.kind.asides), first=False)))
    return text, told


def _draw_values(rng: random.Random, entities: list[Entity], entity: Entity) -> list[tuple[Attribute, str, int | None]]:
    """Draw three to six attributes with their values, less any relation for which the world has no entity."""
    drawn: list[tuple[Attribute, str, int | None]] = []
    for attribute in rng.sample(entity.kind.attributes, rng.randint(3, 6)):
        if not attribute.relation:
            drawn.append((attribute, attribute.draw_value(rng), None))
        elif targets := [i for i, other in enumerate(entities) if other.kind.name == attribute.relation]:
            target = rng.choice(targets)
            drawn.append((attribute, entities[target].full_name, target))
    return drawn


def _sentence(rng: random.Random, entity: Entity, template: str, first: bool) -> str:
    """Fill the entity into the template: its full name, its short name or, at the start of a sentence, a pronoun."""
    draw = 1.0 if first else rng.random()
    name = entity.full_name
    if draw < PRONOUN_SHARE and template.startswith("{e}") and entity.kind.pronouns:
        name = rng.choice(entity.kind.pronouns)
    elif draw < PRONOUN_SHARE + SHORT_NAME_SHARE:
        name = entity.short_name
    return template.replace("{e}", name)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _append(text: str, sentence: str) -> str:
    return f"{text} {sentence}" if text else sentence
