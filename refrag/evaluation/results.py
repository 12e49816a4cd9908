"""An evaluation's results on their way to a JSON file, which is whole after every table."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refrag.evaluation.rows import Table
from refrag.machine.environment import describe_environment


class Report:
    """values: what `refrag.evaluation.report` renders."""

    def __init__(self, module: str, seed: int, output: Path | None) -> None:
        command = " ".join(["python -m", module, *sys.argv[1:]])
        self.values: dict[str, Any] = {"command": command, **describe_environment(), "seed": seed, "tables": {}}
        self.output = output
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, make: Callable[[], Table]) -> None:
        start = time.perf_counter()
        table = make()
        self.values["tables"][name] = {**asdict(table), "seconds": round(time.perf_counter() - start, 1)}
        if self.output is not None:
            self.output.write_text(json.dumps(self.values, indent=2) + "\n")
