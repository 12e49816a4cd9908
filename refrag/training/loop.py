"""Training loop of every stage, the same on one CPU process as on an FSDP cluster (`accelerate launch`, `torchrun`).

One step draws `accumulation_steps` batches per process, rolls them out if the objective needs rollouts, then updates
the weights `updates_per_batch` times with those same batches. All random numbers follow from the seed, the step and
the number of the draw, counted over all processes. So a resumed run continues as if unbroken, and two processes train
like one that accumulates twice as much.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, parse_flag_from_env
from torch.distributed.tensor import DTensor

from refrag.errors import TrainingError
from refrag.training.backbones import keep_activations, layer_classes, recompute_activations, train_what_trains
from refrag.training.draws import open_draws
from refrag.training.metrics import Figures, Metrics, mean_figures, step_figures
from refrag.training.objective import BatchSource, Objective, Outcome
from refrag.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from refrag.training.settings import Optimisation

# Settings that a resumed run may change: how often it saves, what draws its batches, how it trades time for memory.
FREE_SETTINGS = {"snapshot_seconds", "gradient_checkpointing", "num_workers"}


def run_stage(
    name: str, objective: Objective, source: BatchSource, optimisation: Optimisation, directory: Path
) -> dict[str, Any]:
    """Train `objective` for `num_steps` steps in all, resuming from the newest snapshot in `directory`/snapshot.

    Return the cost: steps, minutes, and the means of the figures over the last twentieth of the steps. Raise
    FloatingPointError before a loss or gradient that is not finite reaches the weights; TrainingError if the snapshot
    is of other settings, if nothing trains, or if the launched processes do not know of each other; and, when SIGTERM
    or SIGINT asks for the end, KeyboardInterrupt after a snapshot. All processes share `directory`.
    """
    stage = _Stage(name, objective, source, optimisation, directory)
    stage.resume()
    with _stop_requests() as stop, stage.metrics() as metrics, stage.draws():
        while stage.step < optimisation.num_steps:
            figures = stage.take_step()
            if metrics is not None:
                metrics.write(stage.step, figures)
            is_stopping, is_due = stage.anywhere(stop.is_set(), stage.snapshot_is_due())
            if is_stopping or is_due:
                stage.snapshot()
            if is_stopping:
                raise KeyboardInterrupt(f"stage {name} was stopped after step {stage.step}; run it again to resume")
    stage.snapshot()
    stage.hand_back_weights()
    return stage.cost()


class _Stage:
    def __init__(
        self, name: str, objective: Objective, source: BatchSource, optimisation: Optimisation, directory: Path
    ) -> None:
        self.name, self.source, self.optimisation, self.directory = name, source, optimisation, directory
        self.precision = choose_precision(optimisation.mixed_precision)
        # Accelerate keeps the first stage's precision for the whole process, and refuses another.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=self.precision)
        refuse_strangers(self.accelerator.num_processes)
        self.original = objective
        # Sharding replaces the parameters of a module, so FSDP gets a copy and the original stays whole.
        self.objective = deepcopy(objective) if self._is_sharded else objective
        self._prepare()
        self.step, self.elapsed = 0, 0.0
        self.closing_figures: deque[Figures] = deque(maxlen=max(1, optimisation.num_steps // 20))
        self.saved_step, self.saved_at = -1, time.monotonic()

    @property
    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    def _prepare(self) -> None:
        if not any(parameter.requires_grad for parameter in self.objective.parameters()):
            raise TrainingError(
                f"stage {self.name} trains nothing: every parameter of its objective is frozen; "
                "let at least one of its parts require gradients"
            )
        if self._is_sharded:
            self._prepare_sharding()
        if self.optimisation.gradient_checkpointing:
            recompute_activations(self.objective)
        optimizer = make_optimizer(self.objective, self.optimisation)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        train_what_trains(self.objective)

    def _prepare_sharding(self) -> None:
        if self.optimisation.optimizer == "muon":
            raise TrainingError(
                f"stage {self.name} has optimizer: muon, which needs whole matrices, and FSDP splits them; "
                "give it optimizer: adamw"
            )
        # Each stage has its own parts, and the plugin would keep the layer names of the first stage.
        self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(self.objective)

    @contextmanager
    def draws(self) -> Iterator[None]:
        """Draw batches from the source's position on: ahead of an accelerator, on a CPU when they are needed."""
        has_accelerator = self.accelerator.device.type != "cpu"
        num_workers = self.optimisation.num_workers if has_accelerator else 0
        steps = range(self.step, self.optimisation.num_steps)
        with open_draws(self.source, self._draw, steps, num_workers) as self.drawn:
            yield

    def take_step(self) -> Figures:
        """Draw, roll out, update, and return the step's figures over all processes."""
        started = time.monotonic()
        progress = self.step / self.optimisation.num_steps
        learning_rate = self._set_learning_rate(progress)
        drawn = zip(self.drawn.take(), self._draw_numbers(), strict=True)
        batches = [self._place(batch, number) for batch, number in drawn]
        num_updates = self.objective.updates_per_batch
        figures = [each for epoch in range(num_updates) for each in self._update(batches, epoch)]
        merged = step_figures(gather_object(figures), num_updates)
        self.step += 1
        self.closing_figures.append(merged)
        seconds = time.monotonic() - started
        self.elapsed += seconds
        return {"progress": progress, "learning_rate": learning_rate, "seconds": seconds, **merged}

    def _draw_numbers(self) -> list[int]:
        """Return the numbers of this process's draws among all of the step; processes take turns."""
        num_processes = self.accelerator.num_processes
        first, end = self.accelerator.process_index, self.optimisation.accumulation_steps * num_processes
        return list(range(first, end, num_processes))

    def _set_learning_rate(self, progress: float) -> float:
        settings = self.optimisation
        factor = learning_rate_factor(progress, settings.warmup_fraction, settings.final_fraction)
        set_learning_rate(self.optimizer, settings, factor)
        return settings.learning_rate * factor

    def _rng(self, step: int, draw: int, *purpose: object) -> random.Random:
        return random.Random(" ".join(map(str, (self.optimisation.seed, self.name, step, draw, *purpose))))

    def _draw(self, step: int) -> list[Any]:
        progress = step / self.optimisation.num_steps
        return [self.source.draw(self._rng(step, number), progress) for number in self._draw_numbers()]

    def _place(self, batch: Any, number: int) -> Any:
        """Return the batch on the device, with its rollouts if the objective needs them."""
        batch = batch.to(self.accelerator.device)
        return self._roll_out(batch, number) if self.objective.needs_rollout else batch

    def _roll_out(self, batch: Any, number: int) -> Any:
        seed = self._rng(self.step, number, "rollout").getrandbits(63)
        torch.manual_seed(seed)
        # A rollout judges the weights as they will be served, without dropout, and has no activations to recompute.
        self.objective.eval()
        with torch.no_grad():
            rolled_out = self.model(batch, rollout_seed=seed)
        train_what_trains(self.objective)
        return rolled_out

    def _update(self, batches: list[Any], epoch: int) -> list[Figures]:
        """Update the weights once by the mean loss over `batches`, and return the figures of each batch."""
        outcomes = [self._backward(batches, index, epoch) for index in range(len(batches))]
        norm = self._clip_gradients()
        loss = self.accelerator.reduce(torch.stack([loss for loss, _ in outcomes]).mean(), "mean")
        self._refuse_non_finite(loss.item(), norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [{"loss": loss.item(), "gradient_norm": norm, **figures} for loss, figures in outcomes]

    def _backward(self, batches: list[Any], index: int, epoch: int) -> Outcome:
        # Processes exchange gradients once, in the last backward pass; sharded ones after each, because until the
        # exchange every process would hold them whole.
        is_exchanged = self._is_sharded or index == len(batches) - 1
        torch.manual_seed(self._rng(self.step, self._draw_numbers()[index], epoch).getrandbits(63))
        with nullcontext() if is_exchanged else self.accelerator.no_sync(self.model):
            loss, figures = self.model(batches[index])
            self.accelerator.backward(loss / len(batches))
        return Outcome(loss.detach(), figures)

    def _clip_gradients(self) -> float:
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.optimisation.max_gradient_norm)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _refuse_non_finite(self, loss: float, norm: float) -> None:
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise FloatingPointError(
                f"stage {self.name}, step {self.step + 1}: the loss is {loss}, the gradient norm {norm}; the weights "
                "are untouched: lower the learning rate and start again, or resume from the last snapshot"
            )

    def anywhere(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process raises it: all must agree on when to save and when to stop."""
        raised = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return [count > 0 for count in self.accelerator.reduce(raised, "sum").tolist()]

    @contextmanager
    def metrics(self) -> Iterator[Metrics | None]:
        """Open the run's metrics on the main process; yield None on all others."""
        if not self.accelerator.is_main_process:
            yield None
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with closing(Metrics(self.name, self.directory, self.step, self.optimisation.num_steps)) as metrics:
            yield metrics

    def snapshot_is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.optimisation.snapshot_seconds

    def snapshot(self) -> None:
        """Save the run as `snapshot`/STEP, which appears whole or not at all, then remove older ones."""
        if self.saved_step == self.step:
            return
        final = self.directory / "snapshot" / f"{self.step:08d}"
        partial = final.with_suffix(".partial")
        # Safetensors would drop one of two tied weights, and warn of it at each snapshot.
        self.accelerator.save_state(str(partial), safe_serialization=False)
        (partial / self._source_file).write_text(self.drawn.position)
        if self.accelerator.is_main_process:
            (partial / "run.json").write_text(json.dumps(self._run_state()))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.rename(final)
            for other in set(final.parent.iterdir()) - {final}:
                shutil.rmtree(other)
        self.accelerator.wait_for_everyone()
        self.saved_step, self.saved_at = self.step, time.monotonic()

    @property
    def _source_file(self) -> str:
        return f"source_{self.accelerator.process_index}.json"

    def _run_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "elapsed_seconds": self.elapsed,
            "closing_figures": list(self.closing_figures),
            "settings": self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        """Return the settings that a snapshot and the run that resumes from it must have in common."""
        settings = self.optimisation.model_dump(mode="json", exclude=FREE_SETTINGS)
        computed = {"mixed_precision": self.precision}
        return {"stage": self.name, "num_processes": self.accelerator.num_processes, **settings, **computed}

    def resume(self) -> None:
        """Continue from the newest snapshot, if there is one; raise TrainingError if its run had other settings."""
        snapshot = newest_snapshot(self.directory)
        if snapshot is None:
            return
        state = json.loads((snapshot / "run.json").read_text())
        self._refuse_other_run(snapshot, state)
        self.accelerator.load_state(str(snapshot))
        self.source.restore(json.loads((snapshot / self._source_file).read_text()))
        self.step = self.saved_step = state["step"]
        self.elapsed = state["elapsed_seconds"]
        self.closing_figures.extend(state["closing_figures"])

    def _refuse_other_run(self, snapshot: Path, state: dict[str, Any]) -> None:
        saved, given = state["settings"], self._settings()
        names = sorted(name for name in saved.keys() | given.keys() if saved.get(name) != given.get(name))
        if names:
            differences = ", ".join(f"{name} {saved.get(name)} there and {given.get(name)} here" for name in names)
            raise TrainingError(
                f"the snapshot {snapshot} is of another run ({differences}); "
                f"give the same settings to resume it, or remove {snapshot.parent} to start anew"
            )

    def hand_back_weights(self) -> None:
        """Leave the trained weights in the objective that was given, without anything that wrapped it for training."""
        if not self._is_sharded:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            keep_activations(self.original)
            return
        whole = self.original.state_dict(keep_vars=True)
        with torch.no_grad():
            # One tensor at a time, so that no process holds a second copy of the model on its device.
            for name, value in self.model.state_dict().items():
                whole[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)

    def cost(self) -> dict[str, Any]:
        means = {name: round(value, 4) for name, value in sorted(mean_figures(self.closing_figures).items())}
        precision = {} if self.precision == "no" else {"mixed_precision": self.precision}
        return {"num_steps": self.step, "minutes": round(self.elapsed / 60, 1), **precision, **means}


def choose_precision(wanted: str) -> str:
    """Return the precision to compute in: "auto" is bfloat16 where it is faster, and none elsewhere.

    That is on a GPU that computes it, and on a CPU whose cores multiply matrices of it (AMX).
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    # Older releases of torch do not tell what the CPU can do.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "no"


def newest_snapshot(directory: Path) -> Path | None:
    """Return the folder of the newest whole snapshot in `directory`/snapshot, or None where there is none."""
    whole = [path for path in (directory / "snapshot").glob("*") if path.suffix != ".partial"]
    return max(whole, default=None)


def refuse_strangers(num_processes: int) -> None:
    """Raise TrainingError if the launcher started another number of processes than the `num_processes` that train."""
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    if num_launched != num_processes:
        raise TrainingError(
            f"{num_launched} processes were launched, but {num_processes} train together: this machine has no "
            "accelerator, and accelerate joins CPU processes only when told to: set ACCELERATE_USE_CPU=true"
        )


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set instead of ending the process; only the main thread can catch them."""
    stop = threading.Event()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        yield stop
