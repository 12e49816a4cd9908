"""The file of answers beside a report: a line for each row and condition, written as it is answered.

A run that was killed goes on where it stopped. The first line says what the answers depend on; a run that differs in it
is refused, so that no table mixes two.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refrag.errors import InvalidRequest

Answer = dict[str, Any]


class AnswersFile:
    """Answers by the id of their row and the text of their condition.

    identity: what they depend on. Raises InvalidRequest if the file there has another, or is no such file.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # As JSON has it, to be equal with what is read.
        identity = json.loads(json.dumps(identity))
        if path.exists() and path.stat().st_size:
            self._resume(identity)
        else:
            self._append({"identity": identity})

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.answers

    def __getitem__(self, key: tuple[str, str]) -> Answer:
        return self.answers[key]

    def add(self, row_id: str, condition: str, answer: Answer) -> None:
        """Keep an answer and write it down at once."""
        self.answers[row_id, condition] = answer
        self._append({"row": row_id, "condition": condition, **answer})

    def _resume(self, identity: Mapping[str, Any]) -> None:
        lines = self._whole_lines()
        if not lines or "identity" not in lines[0]:
            raise InvalidRequest(f"{self.path} is no file of answers; name another --output, or delete it")
        if differing := _differences(lines[0]["identity"], identity):
            raise InvalidRequest(
                f"{self.path} holds answers of another run ({'; '.join(differing)}); name another --output, or delete "
                "it to start anew"
            )
        for line in lines[1:]:
            self.answers[line.pop("row"), line.pop("condition")] = line

    def _whole_lines(self) -> list[Answer]:
        """Return the objects of all lines, and cut off a last one that a kill left unfinished."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise InvalidRequest(f"{self.path} is damaged: {error}; delete it to start anew") from None

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
