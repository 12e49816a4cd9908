"""Trains the runs of a preset, each from the checkpoint of the run it starts from, in a folder of its own.

RUNS/settings.yaml              the preset as resolved
RUNS/<run>/settings.yaml        the pair, the settings that the run was begun with, and the runs that led to its start
RUNS/<run>/snapshot/            state to resume from; metrics.jsonl and tensorboard/ stand beside it
RUNS/<run>/checkpoint/          the result, a whole REFRAG checkpoint; once it exists, the run is over
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from refrag.config import CONFIG_NAME, RefragConfig
from refrag.errors import TrainingError
from refrag.machine.environment import describe_environment
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.model.policy import ExpansionPolicy
from refrag.training.fit import refuse_unfit
from refrag.training.loop import FREE_SETTINGS, run_stage
from refrag.training.metrics import METRICS, read_curve
from refrag.training.objective import BatchSource, Objective
from refrag.training.pair import (
    fit_projector,
    make_pair,
    match_projector,
    start_encoder_from_decoder,
    take_chunk_sizes,
)
from refrag.training.preset import Preset
from refrag.training.settings import (
    AnyRun,
    Continue,
    Finetune,
    Gains,
    Policy,
    PolicyRun,
    Pretrain,
    Reconstruct,
    Recover,
    Select,
)
from refrag.training.stages.continuation import Continuation, ContinueSource
from refrag.training.stages.finetune import FinetuneSource, Finetuning
from refrag.training.stages.gains import GainLearning, GainSource
from refrag.training.stages.policy import PolicyOptimisation, PolicySource
from refrag.training.stages.pretrain import Pretraining, PretrainSource
from refrag.training.stages.reconstruct import Reconstruction, ReconstructSource
from refrag.training.stages.recover import RecoverSource, Recovery, first_chunks
from refrag.training.stages.selection import Selection, SelectionSource

CHECKPOINT, SETTINGS, DATA = "checkpoint", "settings.yaml", "data"
# In a run's settings: the costs of the runs that led to the checkpoint that it started from.
STARTED_FROM = "started_from"


def train_all(preset: Preset, runs: Path, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train the named runs, or all if none is named, in the preset's order; runs that are over are left alone.

    Return the cost of each by its name, as from train_run. Raise TrainingError for a name that the preset lacks.
    """
    if unknown := sorted(set(names or []) - set(preset.runs)):
        raise TrainingError(f"no runs {unknown} in the preset; its runs are {list(preset.runs)}, so name some of these")
    chosen = [name for name in preset.runs if not names or name in names]
    return {name: train_run(preset, name, runs, _led_to(preset, name, chosen)) for name in chosen}


def train_run(preset: Preset, name: str, runs: Path, later: Sequence[str] = ()) -> dict[str, Any]:
    """Train one run to its end, resuming it if it was begun, and return its cost as its checkpoint keeps it.

    later: runs that start where this one leads to. What they could not be trained with is refused now, not hours later.

    Raise TrainingError if it was begun with other settings or from another start, or if its start is not over.
    """
    _refuse_other_settings(preset, name, runs)
    _refuse_other_start(preset, name, runs)
    directory = runs / name / CHECKPOINT
    if not directory.exists():
        run = preset.placed_run(name)
        checkpoint = _starting_point(preset, name, runs, later)
        _keep_settings(preset, name, runs)
        source, objective = make_stage(checkpoint, run)
        cost = {"stage": run.stage, **run_stage(name, objective, source, run.optimisation, runs / name)}
        _save(_with_cost(checkpoint, name, cost), directory)
    return _read_cost(name, directory)


def load_run(preset: Preset, runs: Path, name: str | None = None) -> Checkpoint:
    """Load the checkpoint of the named run, by default the preset's result; raise TrainingError if it is not over."""
    directory = runs / (name or preset.result) / CHECKPOINT
    if not directory.exists():
        raise TrainingError(f"{directory} is missing; train run {name or preset.result!r} first")
    return load_checkpoint(directory, merge_adapters=False)


def summarise_runs(preset: Preset, runs: Path) -> dict[str, Any]:
    """Return the settings, the cost (None before the end) and the curve of each run that has begun.

    All values are plain JSON, and few enough to be kept in a repository.
    """
    return {
        name: {
            # Where the data lay is true of one machine alone, and the costs of the runs before stand beside these.
            "settings": {k: v for k, v in _read_settings(runs / name).items() if k not in (DATA, STARTED_FROM)},
            "cost": _read_cost(name, runs / name / CHECKPOINT) if (runs / name / CHECKPOINT).exists() else None,
            "curve": read_curve(runs / name),
        }
        for name in preset.runs
        if (runs / name / METRICS).exists()
    }


def make_stage(checkpoint: Checkpoint, run: AnyRun) -> tuple[BatchSource, Objective]:
    """Return the run's source of batches, and the objective that trains the parts of `checkpoint` in place."""
    return make_source(checkpoint, run), make_objective(checkpoint, run)


def make_source(checkpoint: Checkpoint, run: AnyRun) -> BatchSource:
    """Return the run's source of batches for this process."""
    state = PartialState()
    position = (state.process_index, state.num_processes)
    if isinstance(run, Pretrain):
        return PretrainSource(checkpoint, run, *position)
    if isinstance(run, Recover):
        return RecoverSource(checkpoint, run, *position)
    if isinstance(run, Reconstruct):
        return ReconstructSource(checkpoint, run, *position)
    if isinstance(run, Continue):
        return ContinueSource(checkpoint, run, *position)
    if isinstance(run, Finetune):
        return FinetuneSource(checkpoint, run, *position)
    if isinstance(run, Select):
        return SelectionSource(checkpoint, run)
    return GainSource(checkpoint, run) if isinstance(run, Gains) else PolicySource(checkpoint, run)


def make_objective(checkpoint: Checkpoint, run: AnyRun) -> Objective:
    """Return the run's objective, and set which parts of `checkpoint` train."""
    if isinstance(run, Pretrain):
        return Pretraining(checkpoint)
    if isinstance(run, Recover):
        return Recovery(checkpoint, run)
    if isinstance(run, Reconstruct):
        return Reconstruction(checkpoint, run)
    if isinstance(run, Continue):
        return Continuation(checkpoint, run.form)
    if isinstance(run, Finetune):
        return Finetuning(checkpoint, run)
    if isinstance(run, Select):
        return Selection(checkpoint)
    return GainLearning(checkpoint, run) if isinstance(run, Gains) else PolicyOptimisation(checkpoint, run)


def _starting_point(preset: Preset, name: str, runs: Path, later: Sequence[str] = ()) -> Checkpoint:
    """Return the checkpoint that the run starts from, prepared for its stage."""
    run = preset.placed_run(name)
    if run.start is None:
        checkpoint = make_pair(preset.require_pair())
    elif run.start in preset.runs:
        checkpoint = load_run(preset, runs, run.start)
    else:
        checkpoint = load_checkpoint(Path(run.start), merge_adapters=False)
    if run.trained_chunk_sizes is not None:
        checkpoint = take_chunk_sizes(checkpoint, run.trained_chunk_sizes)
    refuse_unfit(checkpoint, {each: preset.runs[each] for each in (name, *later)})
    return PREPARATIONS.get(type(run), _unprepared)(checkpoint, run, preset)


def _led_to(preset: Preset, name: str, chosen: Sequence[str]) -> list[str]:
    """Return which of the chosen runs start from this one, or from one that does, in the preset's order."""
    found = [name]
    for each in chosen:
        if preset.runs[each].start in found:
            found.append(each)
    return found[1:]


def _unprepared(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    return checkpoint


def _prepare_compression(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    """Start encoder and projector from the decoder's token embeddings before the first compressed stage.

    An encoder of random weights gets the embeddings; the projector starts at their scale, which pretraining has
    changed, or before recovery as near to them as a linear map comes.
    """
    starts_elsewhere = run.start is not None and run.start not in preset.runs
    if starts_elsewhere or getattr(run, "form", "mixed") == "plain":
        return checkpoint
    if any(cost["stage"] != "pretrain" for cost in checkpoint.config.provenance.get("runs", {}).values()):
        return checkpoint
    pair = preset.require_pair()
    if pair.encoder.pretrained is None:
        start_encoder_from_decoder(checkpoint)
    if isinstance(run, Recover):
        fit_projector(checkpoint, first_chunks(checkpoint, run))
    else:
        match_projector(checkpoint, pair.seed)
    return checkpoint


def _prepare_policy(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    assert isinstance(run, PolicyRun)
    if run.fresh:
        pair = preset.require_pair()
        torch.manual_seed(run.optimisation.seed)
        policy = ExpansionPolicy(checkpoint.encoder.width, pair.policy_width, pair.policy_num_heads, run.question_aware)
        config = replace(checkpoint.config, policy_num_heads=pair.policy_num_heads, question_aware=run.question_aware)
        return replace(checkpoint, policy=policy, config=config)
    if run.question_aware != checkpoint.config.question_aware:
        raise TrainingError(
            f"the run has question_aware: {run.question_aware}, but the policy that it starts from has "
            f"{checkpoint.config.question_aware}; add fresh: true to begin with a new policy"
        )
    return checkpoint


PREPARATIONS: dict[type, Callable[[Checkpoint, Any, Preset], Checkpoint]] = {
    Recover: _prepare_compression,
    Reconstruct: _prepare_compression,
    Continue: _prepare_compression,
    Finetune: _prepare_compression,
    Select: _prepare_policy,
    Gains: _prepare_policy,
    Policy: _prepare_policy,
}


def _read_cost(name: str, directory: Path) -> dict[str, Any]:
    return RefragConfig.load(directory).provenance["runs"][name]


def _with_cost(checkpoint: Checkpoint, name: str, cost: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint with this run added to those that led to it."""
    earlier = checkpoint.config.provenance.get("runs", {})
    provenance = {"runs": {**earlier, name: {**cost, **describe_environment()}}}
    return replace(checkpoint, config=replace(checkpoint.config, provenance=provenance))


def _save(checkpoint: Checkpoint, directory: Path) -> None:
    """Save under another name, then rename, so that no half-written checkpoint is ever found there."""
    state = PartialState()
    if state.is_main_process:
        temporary = directory.with_name(f".{directory.name}")
        checkpoint.save(temporary)
        temporary.rename(directory)
    state.wait_for_everyone()


def _refuse_other_settings(preset: Preset, name: str, runs: Path) -> None:
    directory = runs / name
    if not (directory / SETTINGS).exists():
        return
    begun = _read_settings(directory)
    begun.pop(STARTED_FROM, None)
    if changed := sorted(_different(begun, _settings_of(preset, name))):
        raise TrainingError(
            f"{directory} was begun with other settings: {', '.join(changed)}; give the same ones, "
            "name another folder for the runs, or remove this one to train the run anew"
        )


def _refuse_other_start(preset: Preset, name: str, runs: Path) -> None:
    """Raise TrainingError if the start was trained anew since the run was begun, as far as both are told."""
    directory, now = runs / name, _lineage(preset, name, runs)
    begun = _read_settings(directory).get(STARTED_FROM) if (directory / SETTINGS).exists() else None
    if begun is None or now is None or begun == now:
        return
    changed = ", ".join(sorted(_different(begun, now)))
    raise TrainingError(
        f"{directory} was begun from another training of {preset.runs[name].start!r}: {changed}; put that checkpoint "
        "back, or remove this folder to train the run anew"
    )


def _lineage(preset: Preset, name: str, runs: Path) -> dict[str, Any] | None:
    """Return the costs of the runs that led to the run's start, or None if there is no such checkpoint."""
    start = preset.runs[name].start
    if start is None:
        return None
    directory = runs / start / CHECKPOINT if start in preset.runs else Path(start)
    if not (directory / CONFIG_NAME).is_file():
        return None
    return RefragConfig.load(directory).provenance.get("runs", {})


def _keep_settings(preset: Preset, name: str, runs: Path) -> None:
    """Write the resolved preset into the folder of all runs, and this run's settings into its own."""
    if PartialState().is_main_process:
        (runs / name).mkdir(parents=True, exist_ok=True)
        # By way of JSON, so that the files hold plain values alone.
        _write_settings(json.loads(preset.model_dump_json()), runs)
        lineage = _lineage(preset, name, runs)
        started_from = {} if lineage is None else {STARTED_FROM: lineage}
        _write_settings({**_settings_of(preset, name), **started_from}, runs / name)


def _settings_of(preset: Preset, name: str) -> dict[str, Any]:
    """Return the settings on which the run's result depends, as plain values."""
    run = preset.runs[name].model_dump(mode="json")
    pair = None if preset.pair is None else preset.pair.model_dump(mode="json")
    return {"pair": pair, DATA: preset.data, **run}


def _different(saved: Any, given: Any, place: str = "") -> Iterator[str]:
    """Yield each place where the settings differ, with both values, except those that a resumed run may change."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in (saved.keys() | given.keys()) - FREE_SETTINGS:
            yield from _different(saved.get(key), given.get(key), f"{place}.{key}" if place else key)
    elif saved != given:
        yield f"{place} was {saved} and is {given}"


def _read_settings(directory: Path) -> dict[str, Any]:
    return yaml.safe_load((directory / SETTINGS).read_text())


def _write_settings(settings: dict[str, Any], directory: Path) -> None:
    (directory / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False))
