"""A preset: the pair to train, and the runs of its recipe.

It is one YAML file, which `refrag.training.preset_file` reads; `refrag train run PRESET RUN` trains one of its runs.
"""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from refrag.config import CONFIG_NAME
from refrag.errors import TrainingError
from refrag.settings import Settings
from refrag.training.pair_settings import Pair
from refrag.training.settings import AnyRun


class Preset(Settings):
    """A pair and its recipe.

    description: one line on what the preset is for.
    pair: the models to train; may be left out where the first runs start from the folder of a checkpoint.
    data: folder that the relative paths of sources and question files start from; by default the working folder.
    runs: runs by name, in the order in which they are trained; each may start from one above it.
    result: run whose checkpoint the recipe is for.
    """

    description: str
    pair: Pair | None = None
    runs: dict[str, AnyRun]
    result: str
    data: str | None = None

    @model_validator(mode="after")
    def _runs_exist(self) -> "Preset":
        seen: list[str] = []
        for name, run in self.runs.items():
            if run.start is None and self.pair is None:
                raise ValueError(f"run {name!r} starts from nothing; give the preset a pair, or the run a start")
            if not (run.start is None or run.start in seen or is_checkpoint(run.start)):
                raise ValueError(
                    f"run {name!r} starts from {run.start!r}; runs above it are {seen}; name one of them, or "
                    "the folder of a checkpoint"
                )
            seen.append(name)
        if self.result not in seen:
            raise ValueError(f"result is {self.result!r}; the runs are {seen}; name one of them")
        return self

    def require_pair(self) -> Pair:
        """Return the pair; raise TrainingError if the preset leaves it out."""
        if self.pair is None:
            raise TrainingError("the preset names no pair, only checkpoints to start from; give it a pair for this")
        return self.pair

    def pair_of(self, name: str) -> Pair:
        """Return the pair as the named run trains it, with the chunk sizes of the last run up to it that names some."""
        pair, run = self.require_pair(), self.runs[name]
        while run.trained_chunk_sizes is None and run.start in self.runs:
            run = self.runs[run.start]
        return pair.model_copy(update={"trained_chunk_sizes": run.trained_chunk_sizes or pair.trained_chunk_sizes})

    def placed_run(self, name: str) -> AnyRun:
        """Return a run whose paths start from `data`. Saved settings keep the others, which hold on any machine."""
        run = self.runs[name]
        if self.data is None:
            return run
        return type(run).model_validate(_place_paths(run.model_dump(), Path(self.data)))


def is_checkpoint(start: str) -> bool:
    return (Path(start) / CONFIG_NAME).is_file()


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
