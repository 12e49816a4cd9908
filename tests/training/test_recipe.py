"""The recipe's bookkeeping, with runs of one or two steps; whether they learn is for test_tiny.py."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from tiny import tiny_pair

from refrag.config import RefragConfig
from refrag.errors import TrainingError
from refrag.model.checkpoint import load_checkpoint
from refrag.training import recipe
from refrag.training.metrics import read_curve
from refrag.training.preset import Preset
from refrag.training.preset_file import load_preset
from refrag.training.recipe import load_run, train_all, train_run
from refrag_client.cli.main import main

pytestmark = pytest.mark.usefixtures("accelerator_of_module")

ONE_STEP = {"num_steps": 1, "learning_rate": 1e-3}
SMALL = {"optimisation": ONE_STEP, "tokens_per_step": 200}
TEXT = {**SMALL, "sources": [{"kind": "world"}], "curriculum": {"num_chunks": [1, 2]}}
RUNS = {
    "base": {**SMALL, "stage": "pretrain", "sources": [{"kind": "world"}], "window_tokens": 50, "max_passages": 1},
    "reconstruct": {**TEXT, "stage": "reconstruct", "start": "base"},
    "continue": {**TEXT, "stage": "continue", "start": "reconstruct", "continuation_tokens": 8},
    # A batch of the plain form has no chunk embedding for the projector to learn from.
    "finetune": {**SMALL, "stage": "finetune", "start": "continue", "max_passages": 1, "plain_share": 0.0},
    "policy": {**SMALL, "stage": "policy", "start": "finetune", "max_passages": 2, "group_size": 2},
    "blind": {**SMALL, "stage": "policy", "start": "finetune", "max_passages": 2, "group_size": 2}
    | {"question_aware": False, "fresh": True},
    "plain": {**SMALL, "stage": "finetune", "start": "base", "form": "plain", "max_passages": 1},
}


def preset_of(runs=RUNS, **changes):
    pair = tiny_pair(width=32, num_layers=1).model_dump()
    return Preset.model_validate({"description": "", "pair": pair, "runs": runs, "result": list(runs)[-1], **changes})


PRESET = preset_of(result="policy")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, accelerator_of_module):
    """Return the folder of the whole recipe, and what each run is said to have cost."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, train_all(PRESET, runs)


def weights_of(checkpoint, part):
    return dict(checkpoint.modules[part].state_dict())


def is_same(ours, theirs, part):
    ours, theirs = weights_of(ours, part), weights_of(theirs, part)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def as_checkpoints(runs, *names):
    return [load_run(PRESET, runs, name) for name in names]


def test_each_run_has_a_folder_with_its_checkpoint_its_snapshot_and_its_metrics(finished):
    runs, costs = finished
    assert list(costs) == list(RUNS)
    assert {path.name for path in runs.iterdir()} == {*RUNS, "settings.yaml"}
    for name in RUNS:
        assert {path.name for path in (runs / name).iterdir()} >= {"checkpoint", "snapshot", "metrics.jsonl"}


def test_the_settings_beside_the_runs_are_the_preset_as_resolved(finished):
    runs, _ = finished
    assert Preset.model_validate(yaml.safe_load((runs / "settings.yaml").read_text())) == PRESET
    assert load_preset(str(runs / "settings.yaml")) == PRESET


def test_a_checkpoint_tells_the_cost_of_each_run_that_led_to_it_in_order(finished):
    runs, costs = finished
    lineage = ["base", "reconstruct", "continue", "finetune", "policy"]
    told = load_run(PRESET, runs).config.provenance["runs"]
    assert list(told) == lineage
    assert told == {name: costs[name] for name in lineage}
    assert list(load_run(PRESET, runs, "plain").config.provenance["runs"]) == ["base", "plain"]
    for name, cost in told.items():
        assert (cost["stage"], cost["num_steps"]) == (RUNS[name]["stage"], 1)
        assert cost.keys() >= {"minutes", "loss", "machine", "commit"}


@pytest.mark.parametrize(
    ("start", "name", "trained"),
    [
        ("base", "reconstruct", {"encoder", "projector"}),
        ("reconstruct", "continue", {"encoder", "projector", "decoder"}),
        ("continue", "finetune", {"encoder", "projector", "policy", "decoder"}),
        ("finetune", "policy", {"policy"}),
        ("finetune", "blind", {"policy"}),
    ],
)
def test_a_run_goes_on_from_the_weights_of_its_start(finished, start, name, trained):
    before, after = as_checkpoints(finished[0], start, name)
    assert {part for part in before.modules if not is_same(before, after, part)} == trained


def test_a_run_that_is_over_is_left_alone(finished, monkeypatch):
    runs, costs = finished
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.name != "settings.yaml"}
    monkeypatch.setattr(recipe, "run_stage", None)
    assert train_all(PRESET, runs) == costs
    for path, changed in before.items():
        if path != runs:
            assert path.stat().st_mtime_ns == changed, path


def test_runs_are_trained_in_the_presets_order_and_only_those_named(tmp_path):
    costs = train_all(PRESET, tmp_path, ["reconstruct", "base"])
    assert list(costs) == ["base", "reconstruct"]
    assert not (tmp_path / "continue").exists()


def test_runs_of_one_process_may_compute_in_different_precisions(tmp_path):
    rounded = {**RUNS["reconstruct"], "optimisation": {**ONE_STEP, "mixed_precision": "bf16"}}
    runs = {"base": RUNS["base"], "reconstruct": rounded, "continue": RUNS["continue"]}
    costs = train_all(preset_of(runs), tmp_path)
    assert [cost.get("mixed_precision") for cost in costs.values()] == [None, "bf16", None]


def test_a_run_whose_start_is_missing_says_which_to_train_first(tmp_path):
    with pytest.raises(TrainingError, match="train run 'base' first"):
        train_run(PRESET, "reconstruct", tmp_path)


def test_a_result_that_is_not_there_yet_says_so(tmp_path):
    with pytest.raises(TrainingError, match="train run 'policy' first"):
        load_run(PRESET, tmp_path)


def test_a_run_that_the_preset_lacks_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(TrainingError, match=r"no runs \['polciy'\].*'reconstruct'"):
        train_all(PRESET, tmp_path, ["base", "polciy"])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("base", {"tokens_per_step": 300}, "tokens_per_step was 200 and is 300"),
        ("reconstruct", {"optimisation": {**ONE_STEP, "num_steps": 2}}, "optimisation.num_steps was 1 and is 2"),
        ("continue", {"curriculum": {"num_chunks": [1, 4]}}, r"curriculum.num_chunks was \[1, 2\] and is \[1, 4\]"),
    ],
)
def test_a_run_that_was_begun_with_other_settings_is_refused_by_their_names(finished, name, change, told):
    changed = preset_of({**RUNS, name: {**RUNS[name], **change}})
    with pytest.raises(TrainingError, match=told):
        train_run(changed, name, finished[0])


@pytest.fixture
def trained_anew(tmp_path):
    """Two runs, of which the first was removed and trained again after the second had ended."""
    preset = preset_of({name: RUNS[name] for name in ("base", "reconstruct")})
    train_all(preset, tmp_path)
    config = RefragConfig.load(tmp_path / "base" / "checkpoint")
    cost = {**config.provenance["runs"]["base"], "minutes": 7.0}
    replace(config, provenance={"runs": {"base": cost}}).save(tmp_path / "base" / "checkpoint")
    return preset, tmp_path


@pytest.mark.parametrize("is_over", [True, False])
def test_a_run_whose_start_was_trained_anew_is_refused(trained_anew, is_over):
    preset, runs = trained_anew
    if not is_over:
        shutil.rmtree(runs / "reconstruct" / "checkpoint")
    told = r"begun from another training of 'base': base.minutes was 0\.\d and is 7.0; put that checkpoint back"
    with pytest.raises(TrainingError, match=told):
        train_all(preset, runs)


def test_a_run_that_does_not_tell_what_it_was_begun_from_goes_on(trained_anew):
    preset, runs = trained_anew
    shutil.rmtree(runs / "reconstruct" / "checkpoint")
    settings = yaml.safe_load((runs / "reconstruct" / "settings.yaml").read_text())
    del settings["started_from"]
    (runs / "reconstruct" / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert list(train_all(preset, runs)) == ["base", "reconstruct"]


def test_a_run_that_is_over_does_without_its_start(trained_anew):
    preset, runs = trained_anew
    shutil.rmtree(runs / "base" / "checkpoint")
    assert train_run(preset, "reconstruct", runs)["stage"] == "reconstruct"


def test_text_beyond_the_window_is_refused_before_the_run_at_whose_end_it_would_come(finished, tmp_path):
    window, start = PRESET.pair.max_prompt_slots, str(finished[0] / "base" / "checkpoint")
    text = {**TEXT, "start": start, "curriculum": {"num_chunks": [1, window]}}
    going_on = {**text, "stage": "continue", "continuation_tokens": 8}
    replay = {
        "share": 0.5,
        "sources": TEXT["sources"],
        "curriculum": {"num_chunks": [window]},
        "continuation_tokens": 8,
    }
    replayed = {**RUNS["finetune"], "start": start, "expand_fractions": [0.0], "replay": replay}
    for run, slots in (
        (going_on, 1 + window + 8),
        (replayed, 1 + window + 8),
        ({**going_on, "expand_fractions": [1.0]}, 1 + window * 16 + 8),
        ({**text, "stage": "reconstruct"}, 1 + window + window * 16),
    ):
        with pytest.raises(TrainingError, match=f"of {window} chunks of 16 tokens, need {slots} slots, and max_prompt"):
            train_run(preset_of({"long": run}), "long", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_later_run_cannot_be_trained_with_is_refused_before_the_first(tmp_path):
    window = PRESET.pair.max_prompt_slots
    long = {**RUNS["continue"], "curriculum": {"num_chunks": [window]}}
    preset = preset_of({**RUNS, "continue": long})
    with pytest.raises(
        TrainingError, match=rf"^run 'continue': the longest texts .* chunks of 16 .* need {window + 9} "
    ):
        train_all(preset, tmp_path)
    assert not list(tmp_path.iterdir())
    assert list(train_all(preset, tmp_path, ["base", "plain"])) == ["base", "plain"]
    other_sizes = preset_of(
        {**RUNS, "reconstruct": {**RUNS["reconstruct"], "trained_chunk_sizes": [8]}, "continue": long}
    )
    with pytest.raises(TrainingError, match=r"run 'continue': the longest texts .* chunks of 8 tokens"):
        train_all(other_sizes, tmp_path, ["reconstruct", "continue"])


def test_runs_from_a_checkpoint_go_on_from_each_other_without_a_pair(finished, tmp_path):
    first = {**RUNS["finetune"], "start": str(finished[0] / "finetune" / "checkpoint")}
    preset = Preset(description="", runs={"first": first, "second": {**first, "start": "first"}}, result="second")
    assert list(train_all(preset, tmp_path)) == ["first", "second"]


def test_a_curve_has_no_half_line_and_nothing_before_the_first_step(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("")
    assert read_curve(tmp_path) == []
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_curve(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_how_often_a_run_saves_may_change(finished):
    runs, costs = finished
    often = preset_of({**RUNS, "base": {**RUNS["base"], "optimisation": {**ONE_STEP, "snapshot_seconds": 1}}})
    assert train_run(often, "base", runs) == costs["base"]


def test_a_fresh_blind_policy_is_one_that_never_sees_the_question(finished):
    blind, aware = as_checkpoints(finished[0], "blind", "policy")
    assert (blind.policy.question_aware, blind.config.question_aware) == (False, False)
    assert (aware.policy.question_aware, aware.config.question_aware) == (True, True)
    assert blind.policy.chunk_in.weight.shape == aware.policy.chunk_in.weight.shape


def test_a_fresh_policy_has_the_heads_that_the_pair_names(finished, tmp_path):
    start = str(finished[0] / "finetune" / "checkpoint")
    pair = {**PRESET.pair.model_dump(), "policy_num_heads": 2}
    preset = preset_of({"blind": {**RUNS["blind"], "start": start}}, pair=pair)
    train_run(preset, "blind", tmp_path)
    assert load_run(preset, tmp_path).config.policy_num_heads == 2


def test_a_policy_of_the_other_kind_must_be_fresh(finished):
    runs, _ = finished
    stale = {**RUNS["blind"], "fresh": False}
    with pytest.raises(TrainingError, match="add fresh: true"):
        train_run(preset_of({**RUNS, "stale": stale}), "stale", runs)
    assert not (runs / "stale").exists()


def test_the_first_compressed_stage_gives_the_encoder_the_decoders_embeddings(finished, tmp_path):
    runs, _ = finished
    begun = recipe._starting_point(PRESET, "reconstruct", runs)
    embeddings = begun.encoder.backbone.get_input_embeddings().weight
    assert torch.equal(embeddings, begun.decoder.token_embeddings.weight)
    later = recipe._starting_point(PRESET, "continue", runs)
    assert is_same(later, load_run(PRESET, runs, "reconstruct"), "encoder")


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """A run that dies while it saves is resumed from its last snapshot, and then saved."""
    monkeypatch.setattr(recipe.Checkpoint, "save", lambda self, directory: directory.mkdir() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_run(PRESET, "base", tmp_path)
    assert not (tmp_path / "base" / "checkpoint").exists()
    monkeypatch.undo()
    monkeypatch.setattr(recipe.PretrainSource, "draw", None)
    train_run(PRESET, "base", tmp_path)
    assert load_run(PRESET, tmp_path, "base").config.provenance["runs"]["base"]["num_steps"] == 1


# The command line


@pytest.fixture
def preset_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(json.loads(preset_of({"base": RUNS["base"]}).model_dump_json())))
    return path


def train(*arguments):
    return main(["train", *map(str, arguments)])


def test_the_command_trains_prints_the_costs_and_saves_the_result(preset_file, tmp_path, capsys):
    runs, output = tmp_path / "runs", tmp_path / "saved"
    train("run", preset_file, "--runs", runs, "--set", "runs.base.optimisation.num_steps=2")
    costs = json.loads(capsys.readouterr().out)
    assert costs["base"]["num_steps"] == 2
    train("save", preset_file, output, "--runs", runs, "--dtype", "float32")
    assert is_same(load_checkpoint(output), load_checkpoint(runs / "base" / "checkpoint"), "decoder")


def test_a_command_that_cannot_do_its_work_says_why_in_one_line(preset_file, tmp_path, capsys):
    assert train("save", preset_file, tmp_path / "saved", "--runs", tmp_path / "none") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("refrag: ") and line.endswith("train run 'base' first")


def test_the_command_writes_the_learning_curves(preset_file, tmp_path):
    runs, output = tmp_path / "runs", tmp_path / "log.json"
    train("run", preset_file, "--runs", runs)
    train("log", preset_file, output, "--runs", runs)
    base = json.loads(output.read_text())["base"]
    assert base["settings"]["stage"] == "pretrain"
    assert base["cost"]["num_steps"] == 1 and {"minutes", "machine", "commit"} < set(base["cost"])
    assert [point["step"] for point in base["curve"]] == [1]


def test_the_runs_of_a_preset_lie_in_a_folder_of_its_name(preset_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("run", preset_file)
    assert (tmp_path / "runs" / "small" / "base" / "checkpoint" / "refrag.json").exists()
