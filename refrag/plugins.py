"""Finds plug-ins by name: this package's own, and those that other installed packages add as entry points.

Another package adds one by a line in its pyproject.toml; nothing here changes:

    [project.entry-points."refrag.policies"]
    newest_first = "my_package.newest_first:POLICY"
"""

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from refrag.errors import RefragError, SetupError
from refrag.spelling import suggestion

T = TypeVar("T")

# Callers name entries too: so much of a name that nobody offers is compared with the others, and told.
MOST_CHARACTERS = 80


class Table(Generic[T]):
    """Named entries for one place of the request path, each loaded only when it is first asked for.

    kind: what an entry is, for messages: "policy". group: name under which other packages declare entry points.
    built_in: name → "module:attribute". unknown: the error raised for a name that nobody offers.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str], unknown: type[RefragError]) -> None:
        self.kind, self.group, self.unknown = kind, group, unknown
        self.built_in = [EntryPoint(name, place, group) for name, place in built_in.items()]
        self._loaded: dict[str, T] = {}

    @property
    def names(self) -> list[str]:
        """Return the names that `find` accepts, this package's own first."""
        return list(self._entries)

    def check(self, name: str) -> None:
        """Raise the table's error, with all names, unless the name is in it; load nothing."""
        if name not in self._entries:
            name = name[:MOST_CHARACTERS]
            raise self.unknown(
                f"{self.kind} is {name!r}; allowed: {', '.join(self.names)}{suggestion([name], self.names)}"
            )

    def find(self, name: str) -> T:
        """Return the entry of this name; raise as `check` does, or SetupError if the entry cannot be loaded."""
        self.check(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(self._entries[name])
        return self._loaded[name]

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        """Entries by name. Raises SetupError if two packages offer one name, since chance would decide between them."""
        entries: dict[str, EntryPoint] = {}
        for entry in [*self.built_in, *entry_points(group=self.group)]:
            if entry.name in entries and entry.value != entries[entry.name].value:
                raise SetupError(
                    f"two packages offer a {self.kind} {entry.name!r}: {entries[entry.name].value} and {entry.value}; "
                    "uninstall one of them"
                )
            entries[entry.name] = entry
        return entries

    def _load(self, entry: EntryPoint) -> T:
        try:
            loaded: T = entry.load()
        except Exception as error:
            raise SetupError(
                f"the {self.kind} {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        return loaded
