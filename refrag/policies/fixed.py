"""Selects no chunk, or every chunk: the two ends between which all other policies lie."""

from refrag.policies.base import Candidates, Policy


def select_none(candidates: Candidates, budget: int) -> list[int]:
    return []


def select_all(candidates: Candidates, budget: int) -> range:
    return range(len(candidates))


NONE = Policy("no chunk, whatever the fraction", "nothing", select_none)
ALL = Policy("every chunk, whatever the fraction: the plain decoder", "nothing", select_all)
