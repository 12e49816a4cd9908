"""The runs of a preset, each from the checkpoint of the run it starts from, in a folder of its own.

RUNS/settings.yaml              the preset as resolved
RUNS/<run>/settings.yaml        the pair and the settings that the run was begun with
RUNS/<run>/snapshot/            to resume from; metrics.jsonl and tensorboard/ beside it
RUNS/<run>/checkpoint/          what the run made, a whole REFRAG checkpoint; where this is, the run is over
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from refrag.config import RefragConfig
from refrag.errors import TrainingError
from refrag.machine.environment import describe_environment
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.model.policy import ExpansionPolicy
from refrag.training.loop import FREE_SETTINGS, run_stage
from refrag.training.metrics import METRICS, read_curve
from refrag.training.objective import BatchSource, Objective
from refrag.training.pair import make_pair, match_projector, start_encoder_from_decoder
from refrag.training.settings import AnyRun, Continue, Finetune, Policy, Preset, Pretrain, Reconstruct
from refrag.training.stages.continuation import Continuation, ContinueSource
from refrag.training.stages.finetune import FinetuneSource, Finetuning
from refrag.training.stages.policy import PolicyOptimisation, PolicySource
from refrag.training.stages.pretrain import Pretraining, PretrainSource
from refrag.training.stages.reconstruct import Reconstruction, ReconstructSource

CHECKPOINT, SETTINGS = "checkpoint", "settings.yaml"


def train_all(preset: Preset, runs: Path, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train the named runs (all, if none is named) in the preset's order; those that are over are left alone."""
    if unknown := sorted(set(names or []) - set(preset.runs)):
        raise TrainingError(f"no runs {unknown} in the preset; its runs are {list(preset.runs)}")
    return {name: train_run(preset, name, runs) for name in preset.runs if not names or name in names}


def train_run(preset: Preset, name: str, runs: Path) -> dict[str, Any]:
    """Train one run to its end, resuming it if it was begun; its cost, as kept in its checkpoint.

    Raises TrainingError if it was begun with other settings.
    """
    _refuse_other_settings(preset, name, runs)
    directory = runs / name / CHECKPOINT
    if not directory.exists():
        run = preset.runs[name]
        checkpoint = _starting_point(preset, run, runs)
        _keep_settings(preset, name, runs)
        source, objective = make_stage(checkpoint, run)
        cost = {"stage": run.stage, **run_stage(name, objective, source, run.optimisation, runs / name)}
        _save(_with_cost(checkpoint, name, cost), directory)
    return _read_cost(name, directory)


def load_run(preset: Preset, runs: Path, name: str | None = None) -> Checkpoint:
    """The checkpoint of the named run, or of the one that the preset is for; TrainingError if it is not over."""
    directory = runs / (name or preset.result) / CHECKPOINT
    if not directory.exists():
        raise TrainingError(f"{directory} is missing; train run {name or preset.result!r} first")
    return load_checkpoint(directory)


def summarise_runs(preset: Preset, runs: Path) -> dict[str, Any]:
    """For each run that has begun its settings, its cost once it is over, and its curve: enough to be committed."""
    return {
        name: {
            "settings": _read_settings(runs / name),
            "cost": _read_cost(name, runs / name / CHECKPOINT) if (runs / name / CHECKPOINT).exists() else None,
            "curve": read_curve(runs / name),
        }
        for name in preset.runs
        if (runs / name / METRICS).exists()
    }


def make_stage(checkpoint: Checkpoint, run: AnyRun) -> tuple[BatchSource, Objective]:
    """What the run draws, and what it minimises, over the parts of `checkpoint`, which it trains in place."""
    return make_source(checkpoint, run), make_objective(checkpoint, run)


def make_source(checkpoint: Checkpoint, run: AnyRun) -> BatchSource:
    state = PartialState()
    position = (state.process_index, state.num_processes)
    if isinstance(run, Pretrain):
        return PretrainSource(checkpoint, run, *position)
    if isinstance(run, Reconstruct):
        return ReconstructSource(checkpoint, run, *position)
    if isinstance(run, Continue):
        return ContinueSource(checkpoint, run, *position)
    return FinetuneSource(checkpoint, run, *position) if isinstance(run, Finetune) else PolicySource(checkpoint, run)


def make_objective(checkpoint: Checkpoint, run: AnyRun) -> Objective:
    if isinstance(run, Pretrain):
        return Pretraining(checkpoint)
    if isinstance(run, Reconstruct):
        return Reconstruction(checkpoint)
    if isinstance(run, Continue):
        return Continuation(checkpoint, run.form)
    return Finetuning(checkpoint, run) if isinstance(run, Finetune) else PolicyOptimisation(checkpoint, run)


def _starting_point(preset: Preset, run: AnyRun, runs: Path) -> Checkpoint:
    """The checkpoint that the run starts from, prepared for its stage."""
    checkpoint = make_pair(preset.pair) if run.start is None else load_run(preset, runs, run.start)
    return PREPARATIONS.get(type(run), _unprepared)(checkpoint, run, preset)


def _unprepared(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    return checkpoint


def _prepare_compression(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    """On the first compressed stage, an encoder of random weights starts from the decoder's token embeddings, and the
    projector at their scale, which pretraining has changed.
    """
    if getattr(run, "form", "mixed") == "plain":
        return checkpoint
    is_first = not any(cost["stage"] != "pretrain" for cost in checkpoint.config.provenance.get("runs", {}).values())
    if is_first and preset.pair.encoder.pretrained is None:
        start_encoder_from_decoder(checkpoint)
    if is_first:
        match_projector(checkpoint, preset.pair.seed)
    return checkpoint


def _prepare_policy(checkpoint: Checkpoint, run: AnyRun, preset: Preset) -> Checkpoint:
    assert isinstance(run, Policy)
    if run.fresh:
        torch.manual_seed(run.optimisation.seed)
        policy = ExpansionPolicy(
            checkpoint.encoder.width, preset.pair.policy_width, preset.pair.policy_num_heads, run.question_aware
        )
        config = replace(checkpoint.config, question_aware=run.question_aware)
        return replace(checkpoint, policy=policy, config=config)
    if run.question_aware != checkpoint.config.question_aware:
        raise TrainingError(
            f"the run wants question_aware: {run.question_aware}, and the policy it starts from is not; add fresh: true"
        )
    return checkpoint


PREPARATIONS: dict[type, Callable[[Checkpoint, Any, Preset], Checkpoint]] = {
    Reconstruct: _prepare_compression,
    Continue: _prepare_compression,
    Finetune: _prepare_compression,
    Policy: _prepare_policy,
}


def _read_cost(name: str, directory: Path) -> dict[str, Any]:
    return RefragConfig.load(directory).provenance["runs"][name]


def _with_cost(checkpoint: Checkpoint, name: str, cost: dict[str, Any]) -> Checkpoint:
    """The checkpoint with this run behind those that led to it."""
    earlier = checkpoint.config.provenance.get("runs", {})
    provenance = {"runs": {**earlier, name: {**cost, **describe_environment()}}}
    return replace(checkpoint, config=replace(checkpoint.config, provenance=provenance))


def _save(checkpoint: Checkpoint, directory: Path) -> None:
    """Under another name first: a checkpoint that is there is whole."""
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
    if changed := sorted(_different(_read_settings(directory), _settings_of(preset, name))):
        raise TrainingError(
            f"{directory} was begun with other settings: {', '.join(changed)}; give the same ones, "
            "or another folder with --runs, or remove this one to train the run anew"
        )


def _keep_settings(preset: Preset, name: str, runs: Path) -> None:
    """Write the resolved settings beside the runs and beside this one."""
    if PartialState().is_main_process:
        (runs / name).mkdir(parents=True, exist_ok=True)
        # Through JSON, so that the files hold plain values alone.
        _write_settings(json.loads(preset.model_dump_json()), runs)
        _write_settings(_settings_of(preset, name), runs / name)


def _settings_of(preset: Preset, name: str) -> dict[str, Any]:
    """What decides what the run makes, as plain values."""
    return {"pair": preset.pair.model_dump(mode="json"), **preset.runs[name].model_dump(mode="json")}


def _different(saved: Any, given: Any, place: str = "") -> Iterator[str]:
    """Places at which the settings differ, with both values, but for those that a resumed run may change."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in (saved.keys() | given.keys()) - FREE_SETTINGS:
            yield from _different(saved.get(key), given.get(key), f"{place}.{key}" if place else key)
    elif saved != given:
        yield f"{place} was {saved} and is {given}"


def _read_settings(directory: Path) -> dict[str, Any]:
    return yaml.safe_load((directory / SETTINGS).read_text())


def _write_settings(settings: dict[str, Any], directory: Path) -> None:
    (directory / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False))
