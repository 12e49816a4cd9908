"""A small made-up world: entities with attributes, told in varied prose, with questions about single facts.

Nothing in it can be known beforehand: which value an entity's attribute has is drawn anew for every
context, so a right answer must be read from the passages. Entities for evaluation have names (pairs of
name parts) that no training context ever uses.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from refrag.training.kinds import KINDS, Attribute, Kind

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
class Question:
    """A question and where its answer stands: characters [start, stop) of passage `passage`."""

    text: str
    answer: str
    passage: int
    start: int
    stop: int


@dataclass(frozen=True)
class Context:
    """Passages about different entities, and the questions that they answer."""

    passages: list[str]
    questions: list[Question]


SHORT_NAME_SHARE, PRONOUN_SHARE, ASIDE_SHARE = 0.35, 0.15, 0.45


def split_of(first: str, last: str) -> Split:
    """One name pair in eight is held out, by a hash that no seed changes."""
    return "heldout" if zlib.crc32(f"{first} {last}".encode()) % 8 == 0 else "train"


def make_context(rng: random.Random, num_passages: int, num_questions: int, split: Split) -> Context:
    """Draw entities of `split`, tell a passage about each, and ask about `num_questions` of the facts told."""
    passages, facts = [], []
    for index, entity in enumerate(draw_entities(rng, num_passages, split)):
        text, told = tell(rng, entity)
        passages.append(text)
        facts += [(index, entity, attribute, start, stop) for attribute, start, stop in told]
    chosen = rng.sample(facts, min(num_questions, len(facts)))
    questions = [
        Question(ask(rng, entity, attribute), passages[index][start:stop], index, start, stop)
        for index, entity, attribute, start, stop in chosen
    ]
    return Context(passages, questions)


def draw_entities(rng: random.Random, count: int, split: Split) -> list[Entity]:
    """Entities whose short names differ, so that a short name is never ambiguous within a context."""
    entities: list[Entity] = []
    taken: set[str] = set()
    while len(entities) < count:
        kind = rng.choice(KINDS)
        entity = Entity(kind, rng.choice(kind.first_names), rng.choice(kind.last_names))
        if entity.short_name not in taken and split_of(entity.first, entity.last) == split:
            taken.add(entity.short_name)
            entities.append(entity)
    return entities


def tell(rng: random.Random, entity: Entity) -> tuple[str, list[tuple[Attribute, int, int]]]:
    """A passage about one entity, and for each fact told the characters at which its value stands."""
    attributes = rng.sample(entity.kind.attributes, rng.randint(3, min(6, len(entity.kind.attributes))))
    text, told = "", []
    for attribute in attributes:
        before, after = _sentence(rng, entity, rng.choice(attribute.statements), first=not text).split("{v}")
        start = len(text) + bool(text) + len(before)
        value = rng.choice(attribute.values)
        text = _append(text, before + value + after)
        told.append((attribute, start, start + len(value)))
        if rng.random() < ASIDE_SHARE:
            text = _append(text, _sentence(rng, entity, rng.choice(entity.kind.asides), first=False))
    return text, told


def ask(rng: random.Random, entity: Entity, attribute: Attribute) -> str:
    return rng.choice(attribute.questions).replace("{e}", entity.full_name)


def _sentence(rng: random.Random, entity: Entity, template: str, first: bool) -> str:
    """The template with the entity named in full, by its short name or, at the start of a sentence, by a pronoun."""
    draw = 1.0 if first else rng.random()
    name = entity.full_name
    if draw < PRONOUN_SHARE and template.startswith("{e}") and entity.kind.pronouns:
        name = rng.choice(entity.kind.pronouns)
    elif draw < PRONOUN_SHARE + SHORT_NAME_SHARE:
        name = entity.short_name
    sentence = template.replace("{e}", name)
    return sentence[0].upper() + sentence[1:]


def _append(text: str, sentence: str) -> str:
    return f"{text} {sentence}" if text else sentence
