"""What the small world tells of: kinds of entities, their attributes, and the sentences about them.

The last statement and the last question of every attribute are kept from training, to see what a model makes of
phrasing that it never met.
"""

import random
from dataclasses import dataclass, field

from refrag.training.data import vocabulary as words


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


PERSON = Kind(
    name="person",
    first_names=words.FIRST_NAMES,
    last_names=words.LAST_NAMES,
    full="{first} {last}",
    short="{last}",
    pronouns=[],
    reference="that person",
    attributes=[
        Attribute(
            "job",
            "job",
            [
                "{e} works as a {v}.",
                "The job of {e} is that of a {v}.",
                "{e} earns a living as a {v}.",
                "{e} has the job of a {v}.",
            ],
            ["What is the job of {e}?", "What does {e} work as?", "As what does {e} earn a living?"],
            words.JOBS,
        ),
        Attribute(
            "home",
            "home town",
            [
                "{e} lives in {v}.",
                "The home of {e} is in {v}.",
                "{e} has a house in {v}.",
                "In {v} stands the house of {e}.",
            ],
            ["Where does {e} live?", "Where is the home of {e}?", "In which town does {e} have a house?"],
            words.TOWNS,
        ),
        Attribute(
            "colour",
            "favourite colour",
            [
                "{e} likes the colour {v} best.",
                "The favourite colour of {e} is {v}.",
                "{e} always wears {v}.",
                "The colour that {e} likes is {v}.",
            ],
            [
                "What is the favourite colour of {e}?",
                "Which colour does {e} like best?",
                "Which colour does {e} always wear?",
            ],
            words.COLOURS,
        ),
        Attribute(
            "pet",
            "pet",
            [
                "{e} keeps a {v}.",
                "The pet of {e} is a {v}.",
                "{e} shares the house with a {v}.",
                "A {v} is the pet of {e}.",
            ],
            ["What is the pet of {e}?", "Which animal does {e} keep?", "Which pet does {e} keep?"],
            words.ANIMALS,
        ),
        Attribute(
            "instrument",
            "instrument",
            [
                "{e} plays the {v}.",
                "The instrument of {e} is the {v}.",
                "{e} practises the {v} every evening.",
                "Every evening {e} plays the {v}.",
            ],
            ["Which instrument does {e} play?", "What is the instrument of {e}?", "What does {e} play?"],
            words.INSTRUMENTS,
        ),
        Attribute(
            "food",
            "favourite food",
            [
                "{e} eats {v} every week.",
                "The favourite food of {e} is {v}.",
                "{e} is fond of {v}.",
                "{e} likes to eat {v}.",
            ],
            ["What is the favourite food of {e}?", "What does {e} like to eat?", "What is {e} fond of?"],
            words.FOODS,
        ),
        Attribute(
            "birth",
            "birth year",
            [
                "{e} was born in {v}.",
                "The birth year of {e} is {v}.",
                "{e} came into the world in {v}.",
                "In {v} {e} was born.",
            ],
            ["When was {e} born?", "What is the birth year of {e}?", "In which year was {e} born?"],
            words.YEARS,
        ),
        Attribute(
            "birthday",
            "birthday",
            [
                "The birthday of {e} is {v}.",
                "{e} has a birthday on {v}.",
                "{e} celebrates on {v}.",
                "On {v} is the birthday of {e}.",
            ],
            ["What is the birthday of {e}?", "On which day is the birthday of {e}?", "When does {e} celebrate?"],
            words.DAYS,
        ),
        Attribute(
            "badge",
            "badge code",
            [
                "The badge of {e} bears the code {v}.",
                "{e} has the badge code {v}.",
                "The code {v} is on the badge of {e}.",
                "The badge code of {e} is {v}.",
            ],
            ["What is the badge code of {e}?", "Which code is on the badge of {e}?", "Which badge code has {e}?"],
            pattern="AA-0000",
        ),
        Attribute(
            "phone",
            "telephone number",
            [
                "The telephone number of {e} is {v}.",
                "{e} can be reached at {v}.",
                "To speak to {e} dial {v}.",
                "The number {v} is that of {e}.",
            ],
            [
                "What is the telephone number of {e}?",
                "Which number has {e}?",
                "At which telephone number can {e} be reached?",
            ],
            pattern="000-0000",
        ),
    ],
    asides=[
        "{e} rarely speaks about it.",
        "Friends of {e} can tell many stories.",
        "{e} gets up early.",
        "People say that {e} is kind and patient.",
        "{e} has two brothers and a sister.",
        "Last summer {e} spent a month by the sea and came back with a box of shells.",
        "{e} once missed the last train and walked home through the rain.",
        "If you ask for help, {e} will never say no.",
        "Every winter {e} writes long letters to an old friend abroad.",
    ],
)

SHIP = Kind(
    name="ship",
    first_names=words.SHIP_FIRST,
    last_names=words.SHIP_LAST,
    full="the {first} {last}",
    short="the {last}",
    pronouns=["It", "The ship"],
    reference="that ship",
    attributes=[
        Attribute(
            "owner",
            "owner",
            ["{e} belongs to {v}.", "The owner of {e} is {v}.", "{e} is the ship of {v}.", "{v} is the owner of {e}."],
            ["Who is the owner of {e}?", "To whom does {e} belong?", "Whose ship is {e}?"],
            relation="person",
            phrase="the owner of {e}",
        ),
        Attribute(
            "cargo",
            "cargo",
            ["{e} carries {v}.", "The cargo of {e} is {v}.", "{e} is loaded with {v}.", "{e} has a cargo of {v}."],
            ["What is the cargo of {e}?", "What does {e} carry?", "What is {e} loaded with?"],
            words.CARGOES,
        ),
        Attribute(
            "port",
            "home port",
            [
                "{e} sails from {v}.",
                "The home port of {e} is {v}.",
                "{e} spends the winter in {v}.",
                "{v} is the home port of {e}.",
            ],
            ["What is the home port of {e}?", "Where does {e} sail from?", "Where does {e} spend the winter?"],
            words.TOWNS,
        ),
        Attribute(
            "hull",
            "hull colour",
            [
                "{e} has a hull painted {v}.",
                "The hull of {e} is {v}.",
                "{e} is painted {v}.",
                "The colour of the hull of {e} is {v}.",
            ],
            [
                "What colour is the hull of {e}?",
                "Which colour is {e} painted?",
                "What is the colour of the hull of {e}?",
            ],
            words.COLOURS,
        ),
        Attribute(
            "launch",
            "launch year",
            [
                "{e} was launched in {v}.",
                "The launch year of {e} is {v}.",
                "{e} first put to sea in {v}.",
                "In {v} {e} was launched.",
            ],
            ["When was {e} launched?", "What is the launch year of {e}?", "In which year was {e} launched?"],
            words.YEARS,
        ),
        Attribute(
            "registration",
            "registration",
            [
                "{e} is registered as {v}.",
                "The registration of {e} is {v}.",
                "{e} bears the registration {v}.",
                "Registered as {v} is {e}.",
            ],
            [
                "What is the registration of {e}?",
                "As what is {e} registered?",
                "Which registration does {e} bear?",
            ],
            pattern="AAA-000",
        ),
        Attribute(
            "length",
            "length",
            [
                "{e} is {v} feet long.",
                "The length of {e} is {v} feet.",
                "{e} measures {v} feet.",
                "A length of {v} feet has {e}.",
            ],
            ["How many feet long is {e}?", "What is the length of {e}?", "How long is {e}?"],
            pattern="100",
        ),
    ],
    asides=[
        "{e} has weathered many storms.",
        "The crew of {e} is small but cheerful.",
        "{e} was repaired twice last year.",
        "Nobody knows {e} better than the old cook.",
        "On her last journey {e} lost an anchor and two of the smaller boats.",
        "Children wave from the pier whenever {e} comes in with the tide.",
        "{e} is not the fastest ship of the line, but one of the safest.",
        "A new mast was set on {e} after the great storm in autumn.",
    ],
)

COMPANY = Kind(
    name="company",
    first_names=words.COMPANY_FIRST,
    last_names=words.COMPANY_LAST,
    full="{first} {last}",
    short="{first}",
    pronouns=["It", "The firm"],
    reference="that company",
    attributes=[
        Attribute(
            "director",
            "director",
            [
                "{e} is run by {v}.",
                "The director of {e} is {v}.",
                "{e} has {v} as its director.",
                "{v} is the director of {e}.",
            ],
            ["Who is the director of {e}?", "Who runs {e}?", "By whom is {e} run?"],
            relation="person",
            phrase="the director of {e}",
        ),
        Attribute(
            "product",
            "product",
            ["{e} makes {v}.", "The main product of {e} is {v}.", "{e} is known for its {v}.", "{v} are made by {e}."],
            ["What does {e} make?", "What is the main product of {e}?", "What is {e} known for?"],
            words.PRODUCTS,
        ),
        Attribute(
            "seat",
            "head office",
            [
                "{e} is based in {v}.",
                "The head office of {e} is in {v}.",
                "{e} has its factory in {v}.",
                "In {v} is the head office of {e}.",
            ],
            ["Where is {e} based?", "Where is the head office of {e}?", "Where does {e} have its factory?"],
            words.TOWNS,
        ),
        Attribute(
            "mascot",
            "mascot",
            [
                "{e} has a {v} as its mascot.",
                "The mascot of {e} is a {v}.",
                "{e} prints a {v} on every box.",
                "A {v} is the mascot of {e}.",
            ],
            [
                "What is the mascot of {e}?",
                "Which animal is the mascot of {e}?",
                "Which animal does {e} have as its mascot?",
            ],
            words.ANIMALS,
        ),
        Attribute(
            "founding",
            "founding year",
            [
                "{e} was founded in {v}.",
                "The founding year of {e} is {v}.",
                "{e} opened its doors in {v}.",
                "In {v} {e} was founded.",
            ],
            ["When was {e} founded?", "What is the founding year of {e}?", "In which year was {e} founded?"],
            words.YEARS,
        ),
        Attribute(
            "licence",
            "licence number",
            [
                "{e} holds the licence {v}.",
                "The licence number of {e} is {v}.",
                "{e} trades under the licence {v}.",
                "The licence of {e} is {v}.",
            ],
            [
                "What is the licence number of {e}?",
                "Which licence does {e} hold?",
                "Under which licence does {e} trade?",
            ],
            pattern="A-00000",
        ),
        Attribute(
            "workforce",
            "number of workers",
            [
                "{e} employs {v} people.",
                "The number of workers at {e} is {v}.",
                "{e} has {v} workers.",
                "At {e} work {v} people.",
            ],
            ["How many people does {e} employ?", "What is the number of workers at {e}?", "How many workers has {e}?"],
            pattern="100",
        ),
    ],
    asides=[
        "{e} pays fair wages.",
        "Many people would like to work for {e}.",
        "The owners of {e} keep to themselves.",
        "{e} has survived two fires.",
        "Twice a year {e} opens its gates and shows visitors how the work is done.",
        "{e} began in a shed behind a tavern with three people and one table.",
        "After a long quarrel {e} was divided among four cousins.",
        "The newspapers wrote at length about {e} when the old roof fell in.",
    ],
)

# People come twice as often: most can be told of them.
KINDS = [PERSON, PERSON, SHIP, COMPANY]
