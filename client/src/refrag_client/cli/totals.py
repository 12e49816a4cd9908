"""Counts of a run of `refrag index`, summed up over its requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Totals:
    num_passages: int = 0
    num_chunks: int = 0
    num_tokens: int = 0
    num_encoded: int = 0

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of one request; those that are not summed up here are passed over."""
        for name, total in vars(self).items():
            setattr(self, name, total + counts[name])
