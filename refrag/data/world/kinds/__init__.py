"""What the small world tells of: kinds of entities, their attributes, and the sentences about them."""

from refrag.data.world.kinds.company import COMPANY
from refrag.data.world.kinds.kind import Attribute, Kind
from refrag.data.world.kinds.person import PERSON
from refrag.data.world.kinds.ship import SHIP

__all__ = ["KINDS", "Attribute", "Kind"]

# As often as they stand here, entities are of a kind.
KINDS = [PERSON, PERSON, SHIP, COMPANY]
