"""The file of answers beside a report: a line for each row and condition, written as it is answered.

A run that was killed goes on where it stopped. The first line says what the answers depend on; a run that differs in it
is refused, so that no table mixes two.
"""

import fcntl
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refrag.errors import InvalidRequest

Answer = dict[str, Any]


class AnswersFile:
    """Answers by the id of their row and the text of their condition.

    identity: what they depend on. Raises InvalidRequest if the file there has another, or is no such file, or while
    another run writes it.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # As JSON has it, to be equal with what is read.
        self.identity: Mapping[str, Any] = json.loads(json.dumps(identity))
        weakref.finalize(self, os.close, _open_alone(path))
        if path.stat().st_size:
            self.answers, num_bytes = _read(path, self.identity)
            # Without a last line that a kill left unfinished.
            os.truncate(path, num_bytes)
        else:
            self._append({"identity": self.identity})

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.answers

    def __getitem__(self, key: tuple[str, str]) -> Answer:
        return self.answers[key]

    def add(self, row_id: str, condition: str, answer: Answer) -> None:
        """Keep an answer and write it down at once."""
        self.answers[row_id, condition] = answer
        self._append({"row": row_id, "condition": condition, **answer})

    def take_over(self, path: Path) -> None:
        """Keep and write down the answers of another file that are not here; another run may still write it.

        Raises InvalidRequest as opening it does.
        """
        answers, _ = _read(path, self.identity)
        for (row_id, condition), answer in answers.items():
            if (row_id, condition) not in self:
                self.add(row_id, condition, answer)

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def _open_alone(path: Path) -> int:
    """Return a descriptor of the file that keeps other runs out while it is open, or raise InvalidRequest if one is in.

    It is closed with the process, however that ends. A file of locks beside it would be left behind.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InvalidRequest(f"{path} is being written by another run; let it end, or name another --output") from None
    return descriptor


def _read(path: Path, identity: Mapping[str, Any]) -> tuple[dict[tuple[str, str], Answer], int]:
    """Return the answers of a file's whole lines, and their bytes; raise InvalidRequest for a file of another run."""
    lines, num_bytes = _whole_lines(path)
    if not lines or "identity" not in lines[0]:
        raise InvalidRequest(f"{path} is no file of answers; name another --output, or delete it")
    if differing := _differences(lines[0]["identity"], identity):
        raise InvalidRequest(
            f"{path} holds answers of another run ({'; '.join(differing)}); name another --output, or delete it to "
            "start anew"
        )
    return {(line.pop("row"), line.pop("condition")): line for line in lines[1:]}, num_bytes


def _whole_lines(path: Path) -> tuple[list[Answer], int]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        return [json.loads(line) for line in whole.splitlines()], len(whole)
    except ValueError as error:
        raise InvalidRequest(f"{path} is damaged: {error}; delete it to start anew") from None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
