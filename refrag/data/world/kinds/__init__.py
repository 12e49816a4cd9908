"""Kinds of entities in the made-up world, their attributes, and the sentences about them."""

from refrag.data.world.kinds.company import COMPANY
from refrag.data.world.kinds.kind import Attribute, Kind
from refrag.data.world.kinds.person import PERSON
from refrag.data.world.kinds.ship import SHIP

__all__ = ["KINDS", "Attribute", "Kind"]

# Entities draw their kind from this list; people stand in it twice, because most can be told of them.
KINDS = [PERSON, PERSON, SHIP, COMPANY]
