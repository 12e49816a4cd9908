"""Estimates against the real thing where it is small, and against known numbers where it is large."""

import copy
import itertools
import json
import random

import pytest
import torch
from tiny import tiny_pair
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from refrag.training.estimation.estimate import (
    Hardware,
    batch_flops,
    build_on_meta,
    count_parameters,
    estimate_run,
    report,
)
from refrag.training.estimation.geometry import Geometry, geometries, replay_geometries
from refrag.training.estimation.memory import decoder_activations, saved_bytes, static_memory
from refrag.training.optimizer import make_optimizer
from refrag.training.recipe import make_objective, make_source
from refrag.training.settings import Continue, Finetune, Policy, Pretrain, Reconstruct, load_preset
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
    "reconstruct": Reconstruct,
    "continue": Continue,
    "finetune": Finetune,
    "policy": Policy,
    "pretrain": Pretrain,
}
OF_TEXT = {"sources": [{"kind": "world"}]}
CURRICULUM = {"curriculum": {"num_chunks": [1, 3], "ratios": [0.5, 2.0], "num_stages": 2}}
REPLAY = {"share": 0.25, **OF_TEXT, **CURRICULUM, "continuation_tokens": 10}


def make_run(stage, optimizer="adamw", **settings):
    optimisation = {"num_steps": 10, "learning_rate": 1e-3, "optimizer": optimizer, **settings.pop("optimisation", {})}
    text = OF_TEXT if stage in ("reconstruct", "continue", "pretrain") else {}
    text = {**text, **(CURRICULUM if stage in ("reconstruct", "continue") else {})}
    return STAGES[stage](stage=stage, optimisation=optimisation, tokens_per_step=256, **{**text, **settings})


@pytest.fixture
def checkpoint(tiny_checkpoint):
    """Its own to train, and with attention whose operations can be counted."""
    copied = copy.deepcopy(tiny_checkpoint)
    for part in (copied.decoder, copied.encoder):
        part.backbone.set_attn_implementation("eager")
    return copied


@pytest.fixture(scope="module")
def paper():
    return load_preset("llama2-7b-roberta-large")


def geometry_of(batch):
    encoded = (0, 0) if batch.chunks is None else batch.chunks.input_ids.shape
    return Geometry(1.0, *batch.input_ids.shape, int((batch.weights > 0).sum()), *encoded)


def shapes(batches):
    return {
        (each.rows, each.slots, each.num_predicted, each.num_chunks, each.chunk_tokens if each.num_chunks else 0)
        for each in batches
    }


def test_the_parameters_of_each_part_are_those_of_the_real_one(tiny_checkpoint):
    counted = build_on_meta(tiny_pair()).checkpoint.modules
    for part, module in tiny_checkpoint.modules.items():
        assert count_parameters(counted[part]) == sum(parameter.numel() for parameter in module.parameters()), part


def test_the_papers_pair_has_the_parameters_it_is_known_for(paper):
    parts = build_on_meta(paper.pair).checkpoint.modules
    assert count_parameters(parts["decoder"]) == 6_738_415_616
    # 355,359,744 with the pooler, which has no part in training.
    assert count_parameters(parts["encoder"]) == 354_310_144


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stage", ["pretrain", "reconstruct", "finetune", "policy"])
def test_static_memory_is_what_one_step_leaves_behind(checkpoint, stage, optimizer):
    run = make_run(stage, optimizer)
    objective = make_objective(checkpoint, run)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    stepped = make_optimizer(objective, run.optimisation)
    stepped.step()
    state = [value for each in stepped.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    counted = static_memory(make_objective(build_on_meta(tiny_pair()).checkpoint, run), run.optimisation, num_shards=1)
    assert counted.weights == sum(parameter.nbytes for parameter in objective.parameters())
    assert counted.gradients == sum(parameter.grad.nbytes for parameter in trained)
    assert counted.optimizer == sum(value.nbytes for value in state)
    assert counted.gathered == 0


@pytest.mark.parametrize("name", ["continue", "policy"])
def test_more_gpus_never_need_more_memory_each(paper, name):
    run = paper.runs[name]
    objective = make_objective(build_on_meta(paper.pair).checkpoint, run)
    totals = [static_memory(objective, run.optimisation, num_gpus).total for num_gpus in (1, 2, 8, 512)]
    assert all(after <= before for before, after in itertools.pairwise(totals))


@pytest.mark.parametrize("stage", ["reconstruct", "continue", "plain"])
def test_operations_are_those_that_torch_counts(checkpoint, stage):
    settings = {"expand_fractions": [0.5]} if stage == "continue" else {"form": "plain"} if stage == "plain" else {}
    run = make_run("continue" if stage == "plain" else stage, **settings)
    objective = make_objective(checkpoint, run)
    batch = make_source(checkpoint, run).draw(random.Random(0), 0.9)
    with FlopCounterMode(display=False) as counter:
        objective(batch).loss.backward()
    assert batch_flops(objective, run, geometry_of(batch)) == counter.get_total_flops()


def test_recomputed_activations_cost_the_layers_once_more(checkpoint):
    batch = Geometry(1.0, 2, 30, 20, num_chunks=4, chunk_tokens=8)
    run, again = make_run("continue"), make_run("continue", optimisation={"gradient_checkpointing": True})
    objective = make_objective(checkpoint, run)
    once, twice = (batch_flops(objective, each, batch) for each in (run, again))
    assert once < twice < 4 / 3 * once


@pytest.mark.parametrize("stage", ["reconstruct", "continue", "plain"])
def test_batches_of_text_have_the_shapes_that_are_foreseen(tiny_checkpoint, stage):
    settings = (
        {"expand_fractions": [0.0, 0.5]} if stage == "continue" else {"form": "plain"} if stage == "plain" else {}
    )
    run = make_run("continue" if stage == "plain" else stage, **settings)
    source = make_source(tiny_checkpoint, run)
    rng = random.Random(0)
    drawn = [geometry_of(source.draw(rng, progress / 30)) for progress in range(30)]
    assert shapes(drawn) <= shapes(geometries(tiny_pair(), run))
    assert len(shapes(drawn)) >= 4


@pytest.mark.parametrize("form", ["mixed", "plain"])
def test_replayed_text_has_the_shapes_that_are_foreseen(tiny_checkpoint, form):
    run = make_run("finetune", form=form, replay=REPLAY)
    foreseen = replay_geometries(tiny_pair(), run)
    assert sum(each.share for each in foreseen) == pytest.approx(0.25)
    source = make_source(tiny_checkpoint, run)
    drawn = [source.draw(random.Random(seed), 0.5).text for seed in range(60)]
    texts = [geometry_of(text) for text in drawn if text is not None]
    assert shapes(texts) <= shapes(foreseen)
    assert len(shapes(texts)) >= 3


def test_replayed_text_costs_time_and_memory_besides_the_questions():
    alone, together = (
        estimate_run(tiny_pair(), "finetune", make_run("finetune", replay=replay), Hardware())
        for replay in (None, REPLAY)
    )
    for figure in ("activations", "logits", "tokens_per_step", "seconds_per_step"):
        assert getattr(together, figure) > getattr(alone, figure), figure


@pytest.mark.parametrize("stage", ["finetune", "policy"])
def test_batches_of_questions_have_about_as_many_chunks_as_foreseen(tiny_checkpoint, stage):
    run = make_run(stage)
    source, rng, num_draws = make_source(tiny_checkpoint, run), random.Random(0), 12
    drawn = [source.draw(rng, (number + 0.5) / num_draws) for number in range(num_draws)]
    drawn = [batch.questions for batch in drawn] if stage == "finetune" else drawn
    num_chunks = sum(len(batch.chunks.input_ids) + len(batch.questions.input_ids) for batch in drawn) / num_draws
    foreseen = sum(each.share * each.num_chunks for each in geometries(tiny_pair(), run))
    assert 0.6 < foreseen / num_chunks < 1.6


@pytest.mark.parametrize("stage", STAGES)
def test_the_shares_of_batches_add_up(stage):
    assert sum(each.share for each in geometries(tiny_pair(), make_run(stage))) == pytest.approx(1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_that_a_real_forward_pass_saves(frozen, recompute):
    """All layers of the real model, two of which the dry run tries."""
    config = AutoConfig.for_model("llama", **LLAMA)
    batch = Geometry(1.0, 2, 64, 10)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(not frozen).train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    embedded = torch.zeros(batch.rows, batch.slots, 32, requires_grad=True)
    with saved_bytes(model) as saved:
        model.base_model(inputs_embeds=embedded, use_cache=False)
    kept = decoder_activations(config, batch, torch.float32, trains=not frozen)
    # Before a layer is at work again, of it too only the input is kept.
    expected = kept.total(recompute) - (kept.layer if recompute else 0)
    assert saved.total == pytest.approx(expected, rel=0.05)


def test_bfloat16_keeps_less_and_recomputing_least(paper):
    config = build_on_meta(paper.pair).decoder_config
    batch = Geometry(1.0, 1, 512, 100)
    single, half = (decoder_activations(config, batch, dtype, trains=True) for dtype in (torch.float32, torch.bfloat16))
    assert half.total(True) < half.total(False) < single.total(False)
    assert single.total(True) < single.total(False) / 5


def test_what_does_not_fit_says_what_to_change():
    """A run on a GPU that has room for half of what it would need, as soon as it does what was said before."""
    pair, settings = tiny_pair(vocab_size=512), {"continuation_tokens": 64}

    def advice(share=0.5, **optimisation):
        run = make_run("continue", **settings, optimisation=optimisation)
        needed = estimate_run(pair, "continue", run, Hardware(gpu_memory_gib=1))
        gib = (needed.static.total + share * (needed.activations + needed.logits)) / 2**30 / 0.9
        return estimate_run(pair, "continue", run, Hardware(gpu_memory_gib=gib)).advice

    assert advice(1.01) == []
    assert "use more GPUs" in advice(share=-0.1)[0]
    assert "set its optimisation.gradient_checkpointing to true" in advice()[0]
    assert "lower its tokens_per_step to 1" in advice(gradient_checkpointing=True)[0]
    settings["continuation_tokens"] = 256
    assert "one example alone does not fit" in advice(gradient_checkpointing=True)[0]
    pair = tiny_pair(vocab_size=512, max_prompt_slots=128)
    assert "max_prompt_slots is 128" in advice(1.01)[0]


def test_the_papers_runs_fit_on_eight_gpus_in_days(paper):
    hardware = Hardware(num_gpus=8)
    runs = [estimate_run(paper.pair, name, paper.runs[name], hardware) for name in ("reconstruct", "continue")]
    assert all(run.fits and not run.advice for run in runs)
    assert 24 < sum(run.hours for run in runs) < 24 * 6
    # 20 billion tokens of text: some are one slot together, and all of the context are read by the encoder.
    assert 18e9 < runs[1].tokens_per_step * runs[1].num_steps < 24e9
    assert "8 GPUs of 80 GiB" in report(runs, hardware)


def test_the_command_prints_a_table_and_ends_with_one_json_object(capsys):
    arguments = ["estimate", "demo", "--num-gpus", "2", "--gpu-tflops", "100", "--utilisation", "0.2"]
    assert main(arguments) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["hardware"] == {"num_gpus": 2, "gpu_memory_gib": 80.0, "gpu_tflops": 100.0, "utilisation": 0.2}
    assert [run["name"] for run in found["runs"]] == list(load_preset("demo").runs)
    assert all(run["fits"] and run["hours"] > 0 for run in found["runs"])
    assert any(line.startswith("base ") for line in table)
