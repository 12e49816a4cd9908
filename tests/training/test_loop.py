"""The loop in one process, and in two: this file is also the script that the processes run (see `main`)."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from refrag.errors import TrainingError
from refrag.training.loop import (
    Objective,
    Outcome,
    layer_classes,
    recompute_activations,
    run_stage,
    train_what_trains,
)
from refrag.training.settings import Optimisation

pytestmark = pytest.mark.usefixtures("accelerator_of_test")

NEVER = 1e9
VOCAB_SIZE = 32


@dataclass(frozen=True)
class Batch:
    token_ids: Tensor
    rollout: Tensor | None = None

    def to(self, device):
        return Batch(self.token_ids.to(device), self.rollout)


class RandomSource:
    """Draws what the loop's random numbers say; before draw `number` it calls `event`."""

    def __init__(self, event=None, number=None):
        self.event, self.number, self.counter = event, number, count()

    def draw(self, rng, progress):
        if next(self.counter) == self.number:
            self.event()
        return Batch(torch.tensor([[rng.randrange(VOCAB_SIZE) for _ in range(6)] for _ in range(2)]))

    def state(self):
        return {}

    def restore(self, state):
        pass


class Stream:
    """Reads on where it stopped, as from a file: `num_rows` rows at a time."""

    def __init__(self, num_rows=1):
        self.num_rows, self.position = num_rows, 0

    def draw(self, rng, progress):
        first, self.position = self.position, self.position + self.num_rows
        rows = [random.Random(row) for row in range(first, self.position)]
        return Batch(torch.tensor([[row.randrange(VOCAB_SIZE) for _ in range(6)] for row in rows]))

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


class Language(Objective):
    """A tiny decoder that predicts tokens, behind a frozen part with dropout."""

    def __init__(self, attention_dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=attention_dropout,
            use_cache=False,
            tie_word_embeddings=True,
        )
        self.decoder = LlamaForCausalLM(config)
        self.frozen = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.9)).requires_grad_(False)

    def forward(self, batch, rollout_seed=None):
        loss = self.decoder(input_ids=batch.token_ids, labels=batch.token_ids).loss
        scale = self.frozen(torch.ones(1, 1, device=loss.device)).square().mean() + 1
        return Outcome(loss * scale, {"tokens": float(batch.token_ids.numel()), "scale": scale.item()})


class Reinforced(Language):
    """Language that first rolls out a weight for the loss, and keeps count."""

    needs_rollout = True

    def __init__(self, updates_per_batch):
        super().__init__()
        self.updates_per_batch = updates_per_batch
        self.rollout_seeds, self.updates_of = [], []

    def forward(self, batch, rollout_seed=None):
        if rollout_seed is None:
            self.updates_of.append(batch.rollout.item())
            loss, figures = super().forward(batch)
            return Outcome(loss * batch.rollout, figures)
        assert not torch.is_grad_enabled()
        assert not self.decoder.training
        self.rollout_seeds.append(rollout_seed)
        loss, _ = super().forward(batch)
        return Batch(batch.token_ids, rollout=loss)


class Spoilt(Language):
    """Language whose loss is not a number from the third batch on."""

    def __init__(self):
        super().__init__()
        self.counter = count()

    def forward(self, batch, rollout_seed=None):
        loss, figures = super().forward(batch)
        return Outcome(loss * (float("nan") if next(self.counter) >= 2 else 1), figures)


def settings(**changes):
    return Optimisation(**{"num_steps": 6, "learning_rate": 1e-2, "snapshot_seconds": NEVER, **changes})


def train(directory, objective=None, source=None, **changes):
    """Weights after a stage."""
    objective = Language() if objective is None else objective
    run_stage("language", objective, source or RandomSource(), settings(**changes), directory)
    return weights(objective)


def weights(objective):
    return {name: value.clone() for name, value in objective.state_dict().items()}


def logged(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def ask_for_the_end():
    os.kill(os.getpid(), signal.SIGTERM)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    raise RuntimeError("crash")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_an_unbroken_one_bit_for_bit(tmp_path, optimizer):
    options = {"optimizer": optimizer, "accumulation_steps": 2}
    with pytest.raises(KeyboardInterrupt, match="after step 3; run it again"):
        train(tmp_path / "broken", Language(0.5), RandomSource(ask_for_the_end, 5), **options)
    resumed = train(tmp_path / "broken", Language(0.5), **options)
    assert_same(resumed, train(tmp_path / "whole", Language(0.5), **options))


def test_a_run_that_was_killed_goes_on_as_if_unbroken(tmp_path):
    with started("killed", tmp_path / "killed") as killed:
        _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    assert [path.name for path in (tmp_path / "killed" / "snapshot").iterdir()] == ["00000003"]
    assert_same(train(tmp_path / "killed", snapshot_seconds=0), train(tmp_path / "whole"))


def test_a_half_written_snapshot_is_passed_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", source=RandomSource(ask_for_the_end, 2))
    half_written = tmp_path / "broken" / "snapshot" / "00000005.partial"
    half_written.mkdir()
    (half_written / "run.json").write_text('{"step": 5')
    assert_same(train(tmp_path / "broken"), train(tmp_path / "whole"))
    assert not half_written.exists()


def test_a_source_reads_on_where_the_snapshot_left_it(tmp_path):
    broken, resumed, whole = Stream(), Stream(), Stream()
    with pytest.raises(FloatingPointError):
        train(tmp_path / "broken", Spoilt(), broken, snapshot_seconds=0)
    trained = train(tmp_path / "broken", source=resumed)
    assert_same(trained, train(tmp_path / "whole", source=whole))
    assert resumed.position == whole.position == 6


def test_a_finished_run_returns_its_cost_again(tmp_path):
    cost = run_stage("language", Language(), RandomSource(), settings(num_steps=2), tmp_path)
    assert run_stage("language", Language(), RandomSource(crash, 0), settings(num_steps=2), tmp_path) == cost
    assert [line["step"] for line in logged(tmp_path)] == [1, 2]


@pytest.mark.parametrize("change", [{"learning_rate": 5e-3}, {"accumulation_steps": 2}, {"num_steps": 3}])
def test_a_snapshot_of_other_settings_is_refused_by_name(tmp_path, change):
    train(tmp_path, num_steps=2)
    (name,) = change
    with pytest.raises(TrainingError, match=f"of another run \\({name} .* there and {change[name]} here\\)"):
        train(tmp_path, **{"num_steps": 2, **change})


def test_the_handlers_of_signals_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(tmp_path, num_steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_two_accumulated_batches_are_one_of_twice_the_rows(tmp_path):
    accumulated = train(tmp_path / "two", source=Stream(num_rows=1), accumulation_steps=2)
    assert_same(accumulated, train(tmp_path / "one", source=Stream(num_rows=2)), tolerance=1e-5)


def test_recomputed_activations_give_the_same_gradients(tmp_path):
    objective = Language(0.5)
    recomputed = train(tmp_path / "recomputed", objective, gradient_checkpointing=True, num_steps=2)
    assert not objective.decoder.is_activation_checkpointing
    assert_same(recomputed, train(tmp_path / "kept", Language(0.5), num_steps=2), tolerance=1e-6)


def test_a_frozen_decoder_recomputes_too_and_drops_nothing_out():
    objective = Language(0.5)
    objective.requires_grad_(False)
    layer = objective.decoder.model.layers[0]
    calls = []
    layer.input_layernorm.register_forward_hook(lambda *args: calls.append(args[0].training))
    embedded = torch.randn(1, 4, objective.decoder.config.hidden_size, requires_grad=True)
    gradients = []
    for prepare in (train_what_trains, lambda it: (recompute_activations(it), train_what_trains(it))):
        prepare(objective)
        objective.decoder.model(inputs_embeds=embedded, use_cache=False).last_hidden_state.square().sum().backward()
        gradients.append(embedded.grad.clone())
        embedded.grad = None
    assert calls == [False, False, False]
    assert torch.equal(*gradients)


def test_autocast_trains_float32_weights_in_bfloat16(tmp_path):
    objective = Language()
    dtypes = []
    objective.decoder.model.layers[0].mlp.up_proj.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    trained = train(tmp_path, objective, mixed_precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in trained.values())


def test_a_stage_leaves_no_wrapper_on_its_objective(tmp_path):
    objective = Language()
    train(tmp_path, objective, mixed_precision="bf16", num_steps=1)
    loss, _ = objective(RandomSource().draw(random.Random(0), 0.0))
    assert loss.item() == Language.forward(objective, RandomSource().draw(random.Random(0), 0.0)).loss.item()


def test_frozen_parts_stay_as_they_are_and_drop_nothing(tmp_path):
    objective = Language()
    before = weights(objective)
    after = train(tmp_path, objective)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}
    assert len({line["scale"] for line in logged(tmp_path)}) == 1


def test_an_objective_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="stage language trains nothing"):
        train(tmp_path, Language().requires_grad_(False))


def test_each_batch_is_rolled_out_once_and_updated_several_times(tmp_path):
    objective = Reinforced(updates_per_batch=3)
    train(tmp_path, objective, num_steps=2, accumulation_steps=2)
    assert len(set(objective.rollout_seeds)) == 2 * 2
    first, second = objective.updates_of[:6], objective.updates_of[6:]
    for updates in (first, second):
        assert updates == updates[:2] * 3
    assert [line["tokens"] for line in logged(tmp_path)] == [2 * 12] * 2


def test_a_resumed_run_logs_no_step_twice(tmp_path, monkeypatch):
    # Files of one second are read in the order of a counter's digits, of which a test session has many: 9 after 10.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, source=RandomSource(ask_for_the_end, 1))
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, source=RandomSource(crash, 2))
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 5, "los')
    train(tmp_path)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_the_cost_is_the_mean_over_the_last_twentieth(tmp_path):
    cost = run_stage("language", Language(), RandomSource(), settings(num_steps=40), tmp_path)
    last = [line["loss"] for line in logged(tmp_path)][-2:]
    assert cost["num_steps"] == 40
    assert cost["loss"] == pytest.approx(sum(last) / 2, abs=1e-4)


def test_without_tensorboard_the_run_says_so_once_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(tmp_path, num_steps=2)
    assert caplog.text.count("tensorboard is not installed") == 1
    assert len(logged(tmp_path)) == 2


def test_a_loss_that_is_not_finite_is_refused_before_it_spoils_the_weights(tmp_path):
    objective = Spoilt()
    with pytest.raises(FloatingPointError, match=r"stage language, step 3: the loss is nan.* lower the learning rate"):
        train(tmp_path / "spoilt", objective, snapshot_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train(sound := tmp_path / "sound", source=RandomSource(ask_for_the_end, 1))
    assert (sound / "snapshot" / "00000002").is_dir()
    assert_same(train(tmp_path / "spoilt"), train(sound))
    assert all(value.isfinite().all() for value in weights(objective).values())


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    with pytest.raises(TrainingError, match="2 processes were launched, but 1 train together"):
        train(tmp_path)


def test_the_decoders_layers_are_what_fsdp_shards_by():
    assert layer_classes(Language()) == ["LlamaDecoderLayer"]


def test_two_processes_train_like_one_that_accumulates_twice(tmp_path):
    """They hold copies of the weights (DDP) or shards (FSDP), are broken off and resumed, and make rollouts."""
    run_two_processes(tmp_path)
    alone = train(tmp_path / "alone", accumulation_steps=2)
    reinforced = train(tmp_path / "reinforced", Reinforced(2), accumulation_steps=2)
    for kind in ("copies", "shards"):
        assert_same(torch.load(tmp_path / kind / "language.pt"), alone, tolerance=1e-5)
        assert_same(torch.load(tmp_path / kind / "reinforced.pt"), reinforced, tolerance=1e-5)
        assert [line["step"] for line in logged(tmp_path / kind / "language")] == [1, 2, 3, 4, 5, 6]
        assert [line["loss"] for line in logged(tmp_path / kind / "language")] == pytest.approx(
            [line["loss"] for line in logged(tmp_path / "alone")], abs=1e-5
        )
    assert (tmp_path / "shards" / "language" / "snapshot" / "00000006" / "pytorch_model_fsdp_0").is_dir()
    assert "FSDP splits them" in (tmp_path / "shards" / "refusal.txt").read_text()


def run_two_processes(directory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{**address, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    with ExitStack() as stack:
        processes = [stack.enter_context(started("both", directory, OMP_NUM_THREADS="1", **rank)) for rank in ranks]
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors


@contextmanager
def started(task, directory, **environment):
    """Run this file as a process, which does not outlive the block."""
    command = [sys.executable, "-W", "error", __file__, task, str(directory)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_snapshot_is_of_the_precision_that_auto_chose(tmp_path, monkeypatch):
    monkeypatch.setattr("refrag.training.loop.choose_precision", lambda wanted: "no")
    train(tmp_path, num_steps=1, mixed_precision="auto")
    monkeypatch.setattr("refrag.training.loop.choose_precision", lambda wanted: "bf16")
    with pytest.raises(TrainingError, match="mixed_precision no there and bf16 here"):
        train(tmp_path, num_steps=1, mixed_precision="auto")


def main():
    task, directory = sys.argv[1], Path(sys.argv[2])
    if task == "killed":
        train(directory, source=RandomSource(die, 3), snapshot_seconds=0)
    else:
        train_as_one_of_two(directory / "copies")
        shard_from_now_on()
        train_as_one_of_two(directory / "shards")
        refuse_muon(directory / "shards")
        PartialState().destroy_process_group()


def train_as_one_of_two(directory):
    rank = int(os.environ["RANK"])
    try:
        # Only one of the two is asked to end; both must stop after the same step.
        train(directory / "language", source=RandomSource(ask_for_the_end, 2) if rank == 1 else None)
    except KeyboardInterrupt:
        language = train(directory / "language")
    reinforced = train(directory / "reinforced", Reinforced(2))
    if rank == 0:
        torch.save(language, directory / "language.pt")
        torch.save(reinforced, directory / "reinforced.pt")


def shard_from_now_on():
    """Accelerate offers FSDP on accelerators alone, though torch's runs on a CPU, so each state is told it is on."""
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    usual = AcceleratorState.__init__

    def sharded(state, *args, **options):
        usual(state, *args, **options)
        if "fsdp_plugin" not in AcceleratorState._shared_state:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                cpu_ram_efficient_loading=False,
                state_dict_type="SHARDED_STATE_DICT",
            )

    AcceleratorState.__init__ = sharded


def refuse_muon(directory):
    try:
        train(directory / "muon", optimizer="muon")
    except TrainingError as error:
        if os.environ["RANK"] == "0":
            (directory / "refusal.txt").write_text(str(error))


if __name__ == "__main__":
    main()
