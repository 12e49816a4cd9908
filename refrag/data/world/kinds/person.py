"""People, with where they live and work and what they like."""

from refrag.data.world import vocabulary as words
from refrag.data.world.kinds.kind import Attribute, Kind

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
