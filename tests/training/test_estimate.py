"""Estimates against the real thing where it is small, and against known numbers where it is large."""

import copy
import itertools
import json
import random

import pytest
import torch
from tiny import tiny_pair
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM

from refrag.training.backbones import recompute_activations
from refrag.training.estimate import (
    Hardware,
    batch_cost,
    build_on_meta,
    count_parameters,
    estimate,
    estimate_run,
    part_costs,
    report,
    static_memory,
)
from refrag.training.optimizer import make_optimizer
from refrag.training.pair import make_config
from refrag.training.pair_settings import Backbone
from refrag.training.preset import Preset
from refrag.training.preset_file import load_preset
from refrag.training.recipe import make_objective, make_source
from refrag.training.settings import Continue, Finetune, Gains, Policy, Pretrain, Reconstruct, Recover, Select
from refrag.training.shapes import BatchShape, batch_shapes, replay_shapes
from refrag_client.cli.main import main

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
STAGES = {
    "recover": Recover,
    "reconstruct": Reconstruct,
    "continue": Continue,
    "finetune": Finetune,
    "select": Select,
    "gains": Gains,
    "policy": Policy,
    "pretrain": Pretrain,
}
OF_TEXT = {"sources": [{"kind": "world"}]}
CURRICULUM = {"curriculum": {"num_chunks": [1, 3], "ratios": [0.5, 2.0], "num_stages": 2}}
REPLAY = {"share": 0.25, **OF_TEXT, **CURRICULUM, "continuation_tokens": 10}


def make_run(stage, optimizer="adamw", **settings):
    optimisation = {"num_steps": 10, "learning_rate": 1e-3, "optimizer": optimizer, **settings.pop("optimisation", {})}
    text = OF_TEXT if stage in ("recover", "reconstruct", "continue", "pretrain") else {}
    text = {**text, **(CURRICULUM if stage in ("reconstruct", "continue") else {})}
    return STAGES[stage](stage=stage, optimisation=optimisation, tokens_per_step=256, **{**text, **settings})


# The attention of CPUs, which torch does not count by itself.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


@pytest.fixture
def checkpoint(tiny_checkpoint):
    """Return a copy that the test may train."""
    return copy.deepcopy(tiny_checkpoint)


@pytest.fixture(scope="module")
def paper():
    return load_preset("llama2-7b-roberta-large")


def tiny_costs(run, pair=None):
    return part_costs(make_objective(build_on_meta(pair or tiny_pair()), run), run.optimisation)


def shape_of(batch):
    encoded = (0, 0) if batch.chunks is None else batch.chunks.input_ids.shape
    return BatchShape(1.0, *batch.input_ids.shape, int((batch.weights > 0).sum()), *encoded)


def shapes(batches):
    return {
        (each.rows, each.slots, each.num_predicted, each.num_chunks, each.chunk_tokens if each.num_chunks else 0)
        for each in batches
    }


def test_the_parameters_of_each_part_are_those_of_the_real_one(tiny_checkpoint):
    counted = build_on_meta(tiny_pair()).modules
    for part, module in tiny_checkpoint.modules.items():
        assert count_parameters(counted[part]) == sum(parameter.numel() for parameter in module.parameters()), part


def test_the_papers_pair_has_the_parameters_it_is_known_for(paper):
    parts = build_on_meta(paper.pair).modules
    assert count_parameters(parts["decoder"]) == 6_738_415_616
    # 355,359,744 with the pooler, which has no part in training.
    assert count_parameters(parts["encoder"]) == 354_310_144


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stage", ["pretrain", "reconstruct", "finetune", "select", "gains", "policy"])
def test_static_memory_is_what_one_step_leaves_behind(checkpoint, stage, optimizer):
    run = make_run(stage, optimizer)
    objective = make_objective(checkpoint, run)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    stepped = make_optimizer(objective, run.optimisation)
    stepped.step()
    state = [value for each in stepped.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    counted = static_memory(make_objective(build_on_meta(tiny_pair()), run), run.optimisation, num_shards=1)
    assert counted["weights"] == sum(parameter.nbytes for parameter in objective.parameters())
    assert counted["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
    assert counted["optimizer"] == sum(value.nbytes for value in state)
    assert counted["gathered"] == 0


@pytest.mark.parametrize("name", ["continue", "policy"])
def test_more_gpus_never_need_more_memory_each(paper, name):
    run = paper.runs[name]
    objective = make_objective(build_on_meta(paper.pair), run)
    totals = [sum(static_memory(objective, run.optimisation, num_gpus).values()) for num_gpus in (1, 2, 8, 512)]
    assert all(after <= before for before, after in itertools.pairwise(totals))


@pytest.mark.parametrize("stage", ["reconstruct", "continue", "plain"])
def test_operations_are_those_that_torch_counts(checkpoint, stage):
    settings = {"expand_fractions": [0.5]} if stage == "continue" else {"form": "plain"} if stage == "plain" else {}
    run = make_run("continue" if stage == "plain" else stage, **settings)
    objective = make_objective(checkpoint, run)
    batch = make_source(checkpoint, run).draw(random.Random(0), 0.9)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        objective(batch).loss.backward()
    operations, _ = batch_cost(tiny_costs(run), shape_of(batch))
    assert operations == counter.get_total_flops()


def test_recomputed_activations_cost_the_layers_once_more_and_are_not_kept():
    batch = BatchShape(1.0, 2, 30, 20, num_chunks=4, chunk_tokens=8)
    run, again = make_run("continue"), make_run("continue", optimisation={"gradient_checkpointing": True})
    (once, kept), (twice, kept_inputs) = (batch_cost(tiny_costs(each), batch) for each in (run, again))
    assert once < twice < 4 / 3 * once
    assert kept_inputs < kept


@pytest.mark.parametrize("stage", ["reconstruct", "continue", "plain"])
def test_batches_of_text_have_the_shapes_that_are_foreseen(tiny_checkpoint, stage):
    settings = (
        {"expand_fractions": [0.0, 0.5]} if stage == "continue" else {"form": "plain"} if stage == "plain" else {}
    )
    run = make_run("continue" if stage == "plain" else stage, **settings)
    source = make_source(tiny_checkpoint, run)
    rng = random.Random(0)
    drawn = [shape_of(source.draw(rng, progress / 30)) for progress in range(30)]
    assert shapes(drawn) <= shapes(batch_shapes(tiny_pair(), run))
    assert len(shapes(drawn)) >= 4


def test_the_chunk_sizes_of_a_run_are_those_of_the_runs_that_start_from_it():
    runs = {"base": make_run("recover"), "longer": make_run("recover", start="base", trained_chunk_sizes=[64])}
    runs["later"] = make_run("reconstruct", start="longer")
    preset = Preset(description="", pair=tiny_pair(), runs=runs, result="later")
    sizes = [preset.pair_of(name).trained_chunk_sizes for name in runs]
    assert sizes == [tiny_pair().trained_chunk_sizes, [64], [64]]
    # Each chunk is read back, so that the text stands there twice: as chunks, and as their tokens.
    assert [one.longest_slots for one in estimate(preset, Hardware())][2] % 65 == 1


@pytest.mark.parametrize("form", ["mixed", "plain"])
def test_replayed_text_has_the_shapes_that_are_foreseen(tiny_checkpoint, form):
    run = make_run("finetune", form=form, replay=REPLAY)
    foreseen = replay_shapes(tiny_pair(), run)
    assert sum(each.share for each in foreseen) == pytest.approx(0.25)
    source = make_source(tiny_checkpoint, run)
    drawn = [source.draw(random.Random(seed), seed / 60).text for seed in range(60)]
    texts = [shape_of(text) for text in drawn if text is not None]
    assert shapes(texts) <= shapes(foreseen)
    assert len(shapes(texts)) >= 3


def test_replayed_text_costs_time_and_memory_besides_the_questions():
    alone, together = (
        estimate_run(tiny_pair(), "finetune", make_run("finetune", replay=replay), Hardware())
        for replay in (None, REPLAY)
    )
    assert together.memory["activations"] > alone.memory["activations"]
    assert together.tokens > alone.tokens
    assert together.hours > alone.hours


@pytest.mark.parametrize("stage", ["finetune", "select", "gains", "policy"])
def test_batches_of_questions_have_about_as_many_chunks_as_foreseen(tiny_checkpoint, stage):
    run = make_run(stage)
    source, rng, num_draws = make_source(tiny_checkpoint, run), random.Random(0), 12
    drawn = [source.draw(rng, (number + 0.5) / num_draws) for number in range(num_draws)]
    drawn = [batch.questions for batch in drawn] if stage == "finetune" else drawn
    num_chunks = sum(len(batch.chunks.input_ids) + len(batch.questions.input_ids) for batch in drawn) / num_draws
    foreseen = sum(each.share * each.num_chunks for each in batch_shapes(tiny_pair(), run))
    assert 0.6 < foreseen / num_chunks < 1.6


@pytest.mark.parametrize("stage", STAGES)
def test_the_shares_of_batches_add_up(stage):
    assert sum(each.share for each in batch_shapes(tiny_pair(), make_run(stage))) == pytest.approx(1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_that_a_real_forward_pass_saves(frozen, recompute):
    """The estimate for all layers, made from counting two, is compared with the real model."""
    pair = tiny_pair().model_copy(update={"decoder": Backbone(architecture="llama", shape=LLAMA)})
    run = make_run("reconstruct" if frozen else "continue", optimisation={"gradient_checkpointing": recompute})
    kept = tiny_costs(run, pair)["decoder"][2] * 2 * 64
    saved = saved_bytes(5, frozen, recompute)
    if recompute:
        # One layer at a time is recomputed, and keeps all of its activations meanwhile.
        saved += saved_bytes(5, frozen, False) - saved_bytes(4, frozen, False)
    assert kept == pytest.approx(saved, rel=0.05)


def saved_bytes(num_layers, frozen, recompute):
    config = make_config(Backbone(architecture="llama", shape={**LLAMA, "num_hidden_layers": num_layers}), {})
    model = AutoModelForCausalLM.from_config(config).requires_grad_(not frozen).train()
    if recompute:
        recompute_activations(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    embedded = torch.zeros(2, 64, 32, requires_grad=True)
    with saved_tensors_hooks(save, lambda tensor: tensor):
        model.base_model(inputs_embeds=embedded, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


def test_bfloat16_keeps_less_and_recomputing_least(paper):
    def kept(mixed_precision, gradient_checkpointing):
        changed = {"mixed_precision": mixed_precision, "gradient_checkpointing": gradient_checkpointing}
        optimisation = paper.runs["plain_continue"].optimisation.model_copy(update=changed)
        objective = make_objective(build_on_meta(paper.pair), paper.runs["plain_continue"])
        return part_costs(objective, optimisation)["decoder"][2]

    assert kept("bf16", True) < kept("bf16", False) < kept("no", False)
    assert kept("no", True) < kept("no", False) / 5


def test_a_run_fits_as_long_as_its_memory_does():
    def estimate_at(gpu_memory_gib):
        return estimate_run(tiny_pair(), "continue", make_run("continue"), Hardware(gpu_memory_gib=gpu_memory_gib))

    roomy = estimate_at(1.0)
    needed = sum(size for name, size in roomy.memory.items() if name != "reserve") / 2**30 / 0.9
    assert roomy.fits
    assert estimate_at(1.01 * needed).fits
    assert not estimate_at(0.99 * needed).fits


def test_the_papers_runs_fit_on_eight_gpus_in_days(paper):
    hardware = Hardware(num_gpus=8)
    runs = [estimate_run(paper.pair, name, paper.runs[name], hardware) for name in ("reconstruct", "continue")]
    assert all(run.fits for run in runs)
    assert max(run.longest_slots for run in runs) <= paper.pair.max_prompt_slots
    assert 24 < sum(run.hours for run in runs) < 24 * 6
    # 20 billion tokens of text: some are one slot together, and all of the context are read by the encoder.
    assert 18e9 < runs[1].tokens < 24e9
    assert "8 GPUs of 80 GiB" in report(runs, hardware)


@pytest.mark.parametrize(("option", "name"), [("--num-gpus", "num_gpus"), ("--utilisation", "utilisation")])
def test_hardware_that_is_none_is_refused(option, name, capsys):
    assert main(["estimate", "tiny", option, "0"]) == 2
    assert f"{name} is 0; it must be above 0" in capsys.readouterr().err


def test_the_command_prints_a_table_and_ends_with_one_json_object(capsys):
    arguments = ["estimate", "world", "--num-gpus", "2", "--gpu-tflops", "100", "--utilisation", "0.2"]
    assert main(arguments) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["hardware"] == {"num_gpus": 2, "gpu_memory_gib": 80.0, "gpu_tflops": 100.0, "utilisation": 0.2}
    assert [run["name"] for run in found["runs"]] == list(load_preset("world").runs)
    assert all(run["fits"] and run["hours"] > 0 for run in found["runs"])
    assert any(line.startswith("| base ") for line in table)
