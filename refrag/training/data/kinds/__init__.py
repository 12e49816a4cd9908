"""What the small world tells of: kinds of entities, their attributes, and the sentences about them."""

from refrag.training.data.kinds.company import COMPANY
from refrag.training.data.kinds.kind import Attribute, Kind
from refrag.training.data.kinds.person import PERSON
from refrag.training.data.kinds.ship import SHIP

__all__ = ["KINDS", "Attribute", "Kind"]

# As often as they stand here, entities are of a kind.
KINDS = [PERSON, PERSON, SHIP, COMPANY]
