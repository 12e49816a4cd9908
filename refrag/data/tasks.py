"""Makes questions over a context of the made-up world, with one maker per task.

fact          a single fact, a word                      exact         a single fact: a code, a number, a date
yesno         whether a statement is true                multihop      a fact of an entity named by a relation alone
comparison    two facts against each other               unanswerable  a fact that no passage tells: "unknown"
followup      a fact of an entity that only an earlier turn names
summary       what each part of a document tells first

A question's evidence is every span of text that its answer needs; unless all of them are in the context, it has none.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from refrag.data.world.kinds import Attribute
from refrag.data.world.world import Fact, Phrasing, World

Task = Literal["fact", "exact", "yesno", "multihop", "comparison", "unanswerable", "followup", "summary"]
TASKS: tuple[Task, ...] = get_args(Task)
SINGLE_TASKS: tuple[Task, ...] = ("fact", "exact")
# Tasks whose answers are words of the context, so that without the right passage they can only be guessed.
EXTRACTIVE_TASKS: tuple[Task, ...] = (*SINGLE_TASKS, "multihop", "followup")

UNKNOWN = "unknown"
SUMMARY_REQUEST = "What does the report say first of each?"
# Longer documents would need longer answers than any other task.
MAX_SUMMARY_PARTS = 6


@dataclass(frozen=True)
class Span:
    """Characters [start, stop) of passage `passage` of the world, or of turn `passage` of the history."""

    passage: int
    start: int
    stop: int
    in_history: bool = False


@dataclass(frozen=True)
class Question:
    """Question with its answer, and the spans that the answer needs.

    history: earlier turns that the question refers to; they stand behind the passages in the context.
    """

    task: Task
    text: str
    answer: str
    evidence: list[Span]
    history: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Turns:
    """Earlier turns of a dialogue, the entity that each of them names, and the span of that name."""

    texts: list[str]
    entities: list[int]
    names: list[Span]


Maker = Callable[[random.Random, World, Sequence[int], Phrasing], Question | None]


def ask(
    rng: random.Random, task: Task, world: World, passages: Sequence[int], phrasing: Phrasing | None = None
) -> Question | None:
    """Make a question of the task over these passages of the world; None if they hold no matter for one."""
    return MAKERS[task](rng, world, passages, phrasing or Phrasing())


def ask_fact(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    return _ask_single(rng, world, passages, phrasing, "fact")


def ask_exact(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    return _ask_single(rng, world, passages, phrasing, "exact")


def ask_about(rng: random.Random, world: World, fact: Fact, phrasing: Phrasing) -> Question:
    """Ask for the value of this fact."""
    text = _about(rng, phrasing, fact.attribute, world.entities[fact.passage].full_name)
    return Question(single_task(fact), text, fact.value, [_span(fact)])


def single_task(fact: Fact) -> Task:
    """Return the task that asks for this fact alone."""
    return "exact" if fact.attribute.is_exact else "fact"


def ask_yesno(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    facts = [fact for fact in _facts(world, passages) if fact.target is None]
    if not facts:
        return None
    fact = rng.choice(facts)
    is_true = rng.random() < 0.5
    value = fact.value if is_true else _other_value(rng, fact)
    name = world.entities[fact.passage].full_name
    claim = phrasing.choose(rng, fact.attribute.statements).replace("{e}", name).replace("{v}", value)
    claim = claim[:-1] if claim.startswith(name) else claim[0].lower() + claim[1:-1]
    return Question("yesno", f"Is it true that {claim}?", "yes" if is_true else "no", [_span(fact)])


def ask_multihop(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    present = set(passages)
    pairs = [
        (relation, fact)
        for relation in _facts(world, passages)
        if relation.target in present
        for fact in world.facts[relation.target]
    ]
    if not pairs:
        return None
    relation, fact = rng.choice(pairs)
    described = relation.attribute.phrase.replace("{e}", world.entities[relation.passage].full_name)
    text = phrasing.choose(rng, fact.attribute.questions).replace("{e}", described)
    return Question("multihop", text, fact.value, [_span(relation), _span(fact)])


def ask_comparison(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    """Ask whether two entities share a value, or which of two years is the earlier one."""
    alike: dict[str, list[Fact]] = defaultdict(list)
    for fact in _facts(world, passages):
        alike[fact.attribute.noun].append(fact)
    pairs = [
        (one, other)
        for facts in alike.values()
        for one, other in itertools.combinations(facts, 2)
        if one.passage != other.passage
    ]
    if not pairs:
        return None
    one, other = rng.choice(_balanced(rng, pairs))
    first, second = (world.entities[fact.passage].full_name for fact in (one, other))
    if one.attribute.is_year and one.value != other.value and rng.random() < 0.5:
        text = f"Which {one.attribute.noun} is earlier, that of {first} or that of {second}?"
        answer = first if one.value < other.value else second
    else:
        text = f"Do {first} and {second} have the same {one.attribute.noun}?"
        answer = "yes" if one.value == other.value else "no"
    return Question("comparison", text, answer, [_span(one), _span(other)])


def ask_unanswerable(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    """Ask what the entity's passage does not tell, or about an entity of which none of the passages tells."""
    absent = [number for number in range(len(world.entities)) if number not in set(passages)]
    number = rng.choice(absent) if absent and (not passages or rng.random() < 0.5) else rng.choice(list(passages))
    entity = world.entities[number]
    told = {fact.attribute.name for fact in world.facts[number]} if number in set(passages) else set()
    attribute = rng.choice([a for a in entity.kind.attributes if a.name not in told])
    return Question("unanswerable", _about(rng, phrasing, attribute, entity.full_name), UNKNOWN, [])


def ask_followup(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    """Ask about one of the entities of earlier turns, which "that person" or the like must mean."""
    turns = draw_turns(rng, world, passages, phrasing)
    return ask_after(rng, world, turns, phrasing) if turns else None


def draw_turns(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Turns | None:
    """Draw two turns about entities of different kinds, one if all are of a kind, None if no passage has two facts."""
    passages = [number for number in passages if len(world.facts[number]) >= 2]
    if not passages:
        return None
    first = rng.choice(passages)
    others = [n for n in passages if world.entities[n].kind.name != world.entities[first].kind.name]
    chosen = [first, rng.choice(others)] if others else [first]
    texts, names = [], []
    for turn, number in enumerate(chosen):
        fact, name = rng.choice(world.facts[number]), world.entities[number].full_name
        texts.append(f"Question: {_about(rng, phrasing, fact.attribute, name)} Answer: {fact.value}")
        start = texts[-1].index(name)
        names.append(Span(turn, start, start + len(name), in_history=True))
    return Turns(texts, chosen, names)


def ask_after(rng: random.Random, world: World, turns: Turns, phrasing: Phrasing) -> Question:
    """Ask about the entity of one of the turns, without its name."""
    turn = rng.randrange(len(turns.texts))
    number = turns.entities[turn]
    fact = rng.choice(world.facts[number])
    text = _about(rng, phrasing, fact.attribute, world.entities[number].kind.reference)
    return Question("followup", text, fact.value, [turns.names[turn], _span(fact)], turns.texts)


def ask_summary(rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing) -> Question | None:
    """Ask for the first fact of each passage, in the order in which the passages are given."""
    if not 2 <= len(passages) <= MAX_SUMMARY_PARTS:
        return None
    firsts = [world.facts[number][0] for number in passages]
    answer = "; ".join(f"{world.entities[fact.passage].full_name}, {fact.value}" for fact in firsts)
    return Question("summary", SUMMARY_REQUEST, answer, [replace(_span(fact), start=0) for fact in firsts])


MAKERS: dict[Task, Maker] = {
    "fact": ask_fact,
    "exact": ask_exact,
    "yesno": ask_yesno,
    "multihop": ask_multihop,
    "comparison": ask_comparison,
    "unanswerable": ask_unanswerable,
    "followup": ask_followup,
    "summary": ask_summary,
}


def _ask_single(
    rng: random.Random, world: World, passages: Sequence[int], phrasing: Phrasing, task: Task
) -> Question | None:
    facts = [fact for fact in _facts(world, passages) if single_task(fact) == task]
    return ask_about(rng, world, rng.choice(facts), phrasing) if facts else None


def _facts(world: World, passages: Sequence[int]) -> list[Fact]:
    return [fact for number in passages for fact in world.facts[number]]


def _about(rng: random.Random, phrasing: Phrasing, attribute: Attribute, name: str) -> str:
    return phrasing.choose(rng, attribute.questions).replace("{e}", name)


def _other_value(rng: random.Random, fact: Fact) -> str:
    while (value := fact.attribute.draw_value(rng)) == fact.value:
        pass
    return value


def _balanced(rng: random.Random, pairs: list[tuple[Fact, Fact]]) -> list[tuple[Fact, Fact]]:
    """Return the pairs with equal values half of the time, if there are any: nearly all pairs differ otherwise."""
    equal = [(one, other) for one, other in pairs if one.value == other.value]
    return equal if equal and rng.random() < 0.5 else pairs


def _span(fact: Fact) -> Span:
    return Span(fact.passage, fact.start, fact.stop)
