"""Ships, with their owners and voyages."""

from refrag.data.world import vocabulary as words
from refrag.data.world.kinds.kind import Attribute, Kind

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
