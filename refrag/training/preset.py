"""A preset: the pair to train, and the runs of its recipe.

It is one YAML file, which `refrag.training.preset_file` reads; `refrag train run PRESET RUN` trains one of its runs.
"""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from refrag.settings import Settings
from refrag.training.pair_settings import Pair
from refrag.training.settings import AnyRun


class Preset(Settings):
    """A pair and its recipe.

    description: one line on what the preset is for.
    pair: the models to train.
    data: folder that the relative paths of sources and question files start from; by default the working folder.
    runs: runs by name, in the order in which they are trained; each may start from one above it.
    result: run whose checkpoint the recipe is for.
    """

    description: str
    pair: Pair
    runs: dict[str, AnyRun]
    result: str
    data: str | None = None

    @model_validator(mode="after")
    def _runs_exist(self) -> "Preset":
        seen: list[str] = []
        for name, run in self.runs.items():
            if run.start is not None and run.start not in seen:
                raise ValueError(f"run {name!r} starts from {run.start!r}; runs above it are {seen}; name one of them")
            seen.append(name)
        if self.result not in seen:
            raise ValueError(f"result is {self.result!r}; the runs are {seen}; name one of them")
        return self

    def placed_run(self, name: str) -> AnyRun:
        """Return a run whose paths start from `data`. Saved settings keep the others, which hold on any machine."""
        run = self.runs[name]
        if self.data is None:
            return run
        return type(run).model_validate(_place_paths(run.model_dump(), Path(self.data)))


def _place_paths(value: Any, data: Path) -> Any:
    """Return a copy with `data` in front of the paths of files; the path of a data set is a name."""
    if isinstance(value, list):
        return [_place_paths(each, data) for each in value]
    if not isinstance(value, dict):
        return value
    named = {"path", "passages", "targets"} if value.get("kind") != "dataset" else set()
    return {
        key: str(data / each) if key in named and isinstance(each, str) else _place_paths(each, data)
        for key, each in value.items()
    }
