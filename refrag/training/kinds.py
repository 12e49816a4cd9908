"""What the small world tells of: kinds of entities, their attributes, and the sentences about them."""

from dataclasses import dataclass

from refrag.training import vocabulary as words


@dataclass(frozen=True)
class Attribute:
    """One property: `{e}` in a sentence stands for the entity, `{v}` for the value, which each statement has once."""

    name: str
    values: list[str]
    statements: list[str]
    questions: list[str]


@dataclass(frozen=True)
class Kind:
    """A kind of entity: how it is named, how it is referred to, and what can be told of it."""

    name: str
    first_names: list[str]
    last_names: list[str]
    full: str
    short: str
    pronouns: list[str]
    attributes: list[Attribute]
    asides: list[str]


PERSON = Kind(
    name="person",
    first_names=words.FIRST_NAMES,
    last_names=words.LAST_NAMES,
    full="{first} {last}",
    short="{last}",
    pronouns=[],
    attributes=[
        Attribute(
            "job",
            words.JOBS,
            ["{e} works as a {v}.", "The job of {e} is that of a {v}.", "{e} earns a living as a {v}."],
            ["What is the job of {e}?", "What does {e} work as?"],
        ),
        Attribute(
            "home",
            words.TOWNS,
            ["{e} lives in {v}.", "The home of {e} is in {v}.", "{e} has a house in {v}."],
            ["Where does {e} live?", "Where is the home of {e}?"],
        ),
        Attribute(
            "colour",
            words.COLOURS,
            ["{e} likes the colour {v} best.", "The favourite colour of {e} is {v}.", "{e} always wears {v}."],
            ["What is the favourite colour of {e}?", "Which colour does {e} like best?"],
        ),
        Attribute(
            "pet",
            words.ANIMALS,
            ["{e} keeps a {v}.", "The pet of {e} is a {v}.", "{e} shares the house with a {v}."],
            ["What is the pet of {e}?", "Which animal does {e} keep?"],
        ),
        Attribute(
            "instrument",
            words.INSTRUMENTS,
            ["{e} plays the {v}.", "The instrument of {e} is the {v}.", "{e} practises the {v} every evening."],
            ["Which instrument does {e} play?", "What is the instrument of {e}?"],
        ),
        Attribute(
            "food",
            words.FOODS,
            ["{e} eats {v} every week.", "The favourite food of {e} is {v}.", "{e} is fond of {v}."],
            ["What is the favourite food of {e}?", "What does {e} like to eat?"],
        ),
        Attribute(
            "birth",
            words.YEARS,
            ["{e} was born in {v}.", "The birth year of {e} is {v}.", "{e} came into the world in {v}."],
            ["When was {e} born?", "What is the birth year of {e}?"],
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
    attributes=[
        Attribute(
            "cargo",
            words.CARGOES,
            ["{e} carries {v}.", "The cargo of {e} is {v}.", "{e} is loaded with {v}."],
            ["What is the cargo of {e}?", "What does {e} carry?"],
        ),
        Attribute(
            "port",
            words.TOWNS,
            ["{e} sails from {v}.", "The home port of {e} is {v}.", "{e} spends the winter in {v}."],
            ["What is the home port of {e}?", "Where does {e} sail from?"],
        ),
        Attribute(
            "hull",
            words.COLOURS,
            ["{e} has a hull painted {v}.", "The hull of {e} is {v}.", "{e} is painted {v}."],
            ["What colour is the hull of {e}?", "Which colour is {e} painted?"],
        ),
        Attribute(
            "launch",
            words.YEARS,
            ["{e} was launched in {v}.", "The launch year of {e} is {v}.", "{e} first put to sea in {v}."],
            ["When was {e} launched?", "What is the launch year of {e}?"],
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
    attributes=[
        Attribute(
            "product",
            words.PRODUCTS,
            ["{e} makes {v}.", "The main product of {e} is {v}.", "{e} is known for its {v}."],
            ["What does {e} make?", "What is the main product of {e}?"],
        ),
        Attribute(
            "seat",
            words.TOWNS,
            ["{e} is based in {v}.", "The head office of {e} is in {v}.", "{e} has its factory in {v}."],
            ["Where is {e} based?", "Where is the head office of {e}?"],
        ),
        Attribute(
            "mascot",
            words.ANIMALS,
            ["{e} has a {v} as its mascot.", "The mascot of {e} is a {v}.", "{e} prints a {v} on every box."],
            ["What is the mascot of {e}?", "Which animal is the mascot of {e}?"],
        ),
        Attribute(
            "founding",
            words.YEARS,
            ["{e} was founded in {v}.", "The founding year of {e} is {v}.", "{e} opened its doors in {v}."],
            ["When was {e} founded?", "What is the founding year of {e}?"],
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
