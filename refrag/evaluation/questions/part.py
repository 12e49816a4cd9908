"""Parts of a run, for several processes to share it: each answers its own rows into a file of its own.

town.part-1-of-2.answers.jsonl    rows 1, 3, 5 …
town.part-2-of-2.answers.jsonl    rows 2, 4, 6 …
town.answers.jsonl                all of them, once a run of no part has taken them over
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from refrag.errors import InvalidRequest

ANSWERS_SUFFIX = ".answers.jsonl"


@dataclass(frozen=True)
class Part:
    """Every `count`-th row, from the one of this number on, which counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Return the part that is written I/N; raise InvalidRequest for another form, or numbers out of range."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InvalidRequest(f"part is {text!r}; write I/N with I from 1 to N, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    @property
    def rows(self) -> slice:
        """Return where its rows are among all."""
        return slice(self.number - 1, None, self.count)


def answers_path(output: Path, part: Part | None = None) -> Path:
    """Return the path of the answers beside a report: its name without .json, the part's, and their own suffix."""
    name = "" if part is None else f".part-{part.number}-of-{part.count}"
    return output.with_name(_stem(output) + name + ANSWERS_SUFFIX)


def find_parts(output: Path) -> list[Path]:
    """Return the files of answers that parts have left beside a report."""
    return sorted(output.parent.glob(f"{glob.escape(_stem(output))}.part-*-of-*{ANSWERS_SUFFIX}"))


def _stem(output: Path) -> str:
    return output.name.removesuffix(".json")
