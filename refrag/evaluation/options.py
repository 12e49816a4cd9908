"""Options of an evaluation, from which the command line is made."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from refrag.data.documents import JSONL_SUFFIXES
from refrag.data.sources import TextSource
from refrag.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The sizes of the studies, and the sources they draw from; raises InvalidRequest for a value out of range."""

    num_questions: int = field(
        default=400, metadata={"help": "questions per row, rounded up to as many of each task; fewer for long contexts"}
    )
    num_windows: int = field(default=100, metadata={"help": "windows of prose per row"})
    expand_fraction: float = field(
        default=0.1, metadata={"help": "share of the chunks to expand in the main comparisons"}
    )
    trained_passages: int = field(
        default=10, metadata={"help": "most passages per context in training, which the extrapolation multiplies"}
    )
    prose: Path | None = field(
        default=None, metadata={"help": "folder or file of text or JSONL documents (default: the standard library's)"}
    )
    context_tokens: int = field(default=512, metadata={"help": "tokens of context in each window of prose"})
    continuation_tokens: int = field(
        default=128, metadata={"help": "tokens to predict after the context of each window of prose"}
    )
    seed: int = field(default=0, metadata={"help": "draws the questions, random selections and resamples"})

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int | float) and one.name != "seed" and value <= 0:
                raise InvalidRequest(f"{one.name} is {value}; it must be above zero")
        # The policies are compared at twice the fraction too.
        if self.expand_fraction > 0.5:
            raise InvalidRequest(f"expand_fraction is {self.expand_fraction}; it must be at most 0.5")


def parse_named_paths(texts: Sequence[str], noun: str, form: str) -> dict[str, Path]:
    """Read texts of the form NAME=PATH; raise InvalidRequest for another form or a name given twice."""
    paths: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise InvalidRequest(f"{noun} is given as {text!r}; the form is {form}")
        if name in paths:
            raise InvalidRequest(f"two rows would be called {name!r}; give each a name of its own")
        paths[name] = Path(path)
    return paths


def add_options(parser: argparse.ArgumentParser, options: type[Any] = Options) -> None:
    """Add an option for each field of a dataclass; metadata may have choices, and the type of one that may be None."""
    for one in fields(options):
        name = f"--{one.name.replace('_', '-')}"
        if one.default is False:
            parser.add_argument(name, action="store_true", help=one.metadata["help"])
            continue
        known = "" if one.default is None else " (default: %(default)s)"
        parser.add_argument(
            name,
            type=one.metadata.get("type", Path) if one.default is None else type(one.default),
            choices=one.metadata.get("choices"),
            default=one.default,
            help=one.metadata["help"] + known,
        )


def parsed_options(arguments: argparse.Namespace, options: type[T]) -> T:
    return options(**{one.name: getattr(arguments, one.name) for one in fields(options)})  # type: ignore[arg-type]


def prose_source(path: Path | None) -> TextSource:
    """Return the source of the documents at `path`, or of the standard library's if it is None."""
    if path is None:
        return TextSource(kind="stdlib")
    return TextSource(kind="jsonl" if path.name.endswith(JSONL_SUFFIXES) else "text", path=str(path))
