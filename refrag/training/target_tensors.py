"""A teacher's answers as tensors, and what of them a call that was cut off leaves for the next one."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refrag.errors import TrainingError
from refrag.teacher_forcing.distribution import TopDistribution

# A answers, T tokens of all of them, N likeliest tokens

LENGTHS = "lengths"
TENSORS = {LENGTHS, "token_ids", "likeliest_ids", "log_probabilities"}
# Answers of a large teacher take seconds each; so few are lost.
ANSWERS_PER_PART = 16


@dataclass(frozen=True)
class Target:
    """A teacher's answer: its tokens, and the distribution before each of them.

    num_passages: passages that the teacher read, those with the evidence among them; fewer need not hold the answer.
    """

    token_ids: list[int]
    distribution: TopDistribution
    num_passages: int


def join_targets(targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return all answers one after another.

    -> lengths INT32 (A,), token_ids INT32 (T,), likeliest_ids INT32 (T, N), log_probabilities FP16 (T, N + 1)
    """
    distribution = TopDistribution.joined([each.distribution for each in targets])
    return {
        LENGTHS: torch.tensor([len(each.token_ids) for each in targets], dtype=torch.int32),
        "token_ids": torch.tensor([i for each in targets for i in each.token_ids], dtype=torch.int32),
        "likeliest_ids": distribution.likeliest_ids.int(),
        "log_probabilities": distribution.log_probabilities.half(),
    }


def split_targets(tensors: Mapping[str, Tensor], num_passages: int) -> list[Target]:
    """Return the answers that `join_targets` has joined."""
    lengths = tensors[LENGTHS].tolist()
    parts = (tensors[name].split(lengths) for name in ("token_ids", "likeliest_ids", "log_probabilities"))
    return [
        Target(token_ids.tolist(), TopDistribution(likeliest.long(), logs.float()), num_passages)
        for token_ids, likeliest, logs in zip(*parts, strict=True)
    ]


def read_tensors(file: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and metadata; raise TrainingError, which ends with the remedy, if it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file} cannot be read: {error}; {remedy}") from None


class TargetParts:
    """Answers as they come, ANSWERS_PER_PART in a file, named by the number of those before it.

    identity: all that the answers depend on, by name.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder, self.identity = folder, dict(identity)

    def read(self, num_passages: int) -> list[Target]:
        """Return the answers that earlier calls have left, from the first on.

        Raise TrainingError if they are answers to something else, or of another teacher.
        """
        targets: list[Target] = []
        while (file := self._file(len(targets))).exists():
            targets += split_targets(self._load(file), num_passages)
        return targets

    def add(self, num_before: int, targets: Sequence[Target]) -> None:
        """Keep the answers that follow the first `num_before`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(num_before)
        unfinished = file.with_suffix(".new")
        save_file(join_targets(targets), unfinished, self.identity)
        unfinished.replace(file)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, num_before: int) -> Path:
        return self.folder / f"{num_before:08d}.safetensors"

    def _load(self, file: Path) -> dict[str, Tensor]:
        tensors, held = read_tensors(file, f"remove {self.folder} to begin anew")
        if others := [name for name, value in self.identity.items() if held.get(name) != value]:
            raise TrainingError(
                f"{self.folder} holds answers of a call that was cut off and had other {', '.join(others)}; give the "
                "same ones, name another folder, or remove this one to begin anew"
            )
        return tensors
