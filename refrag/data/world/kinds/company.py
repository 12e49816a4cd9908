"""Companies, with their directors and products."""

from refrag.data.world import vocabulary as words
from refrag.data.world.kinds.kind import Attribute, Kind

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
