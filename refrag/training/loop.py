"""The loop that every stage shares: schedule, gradient step, metrics as JSON lines, snapshots to resume from."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from refrag.training.optimizer import learning_rate_factor, make_optimizers

SNAPSHOT_SECONDS = 120.0
MAX_GRADIENT_NORM = 1.0


# A stage's step: given the random source and the progress from 0 to 1, a loss and named figures to log.
Step = Callable[[random.Random, float], tuple[Tensor, dict[str, float]]]


def run_stage(
    name: str,
    step_function: Step,
    modules: dict[str, nn.Module],
    num_steps: int,
    learning_rate: float,
    seed: int,
    directory: Path,
    snapshot_seconds: float = SNAPSHOT_SECONDS,
) -> dict[str, float]:
    """Train `modules` for `num_steps` steps in all, resuming from a snapshot of the same stage if there is one.

    Returns the cost: steps, minutes, and the means of the figures over the last twentieth of the stage.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = _Stage(name, modules, make_optimizers(modules.values(), learning_rate), random.Random(seed), directory)
    state.resume()
    with (directory / f"{name}.jsonl").open("a") as log, tqdm(total=100, desc=name, unit="%", disable=None) as bar:
        while (progress := state.step / num_steps) < 1:
            started = time.monotonic()
            loss, figures = step_function(state.rng, progress)
            state.update(loss, learning_rate * learning_rate_factor(progress))
            state.elapsed += time.monotonic() - started
            state.figures.append(figures)
            print(json.dumps({"step": state.step, "progress": round(progress, 4), **figures}), file=log, flush=True)
            bar.update(round(100 * progress) - bar.n)
            bar.set_postfix({key: f"{value:.3f}" for key, value in figures.items()})
            state.snapshot_if_due(snapshot_seconds)
    state.snapshot()
    return {"num_steps": state.step, "minutes": round(state.elapsed / 60, 1), **state.closing_figures()}


class _Stage:
    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        rng: random.Random,
        directory: Path,
    ) -> None:
        self.modules, self.optimizers, self.rng = modules, optimizers, rng
        self.path = directory / f"{name}.snapshot.pt"
        self.step, self.elapsed = 0, 0.0
        self.figures: list[dict[str, float]] = []
        self.saved_at = time.monotonic()

    def update(self, loss: Tensor, learning_rate: float) -> None:
        loss.backward()
        for module in self.modules.values():
            nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def snapshot_if_due(self, seconds: float) -> None:
        if time.monotonic() - self.saved_at >= seconds:
            self.snapshot()

    def snapshot(self) -> None:
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "figures": self.figures,
            "rng": self.rng.getstate(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.rename(self.path)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        if not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.step, self.elapsed, self.figures = state["step"], state["elapsed"], state["figures"]
        self.rng.setstate(state["rng"])
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def closing_figures(self) -> dict[str, float]:
        last = self.figures[-max(1, len(self.figures) // 20) :]
        names = sorted({name for figures in last for name in figures})
        return {
            name: round(sum(values) / len(values), 4)
            for name in names
            if (values := [figures[name] for figures in last if name in figures])
        }
