"""The preset `tiny`: every stage of the recipe learns, which its control on held-out data must show.

That a loss falls says little: a decoder that ignores its chunk embeddings learns too. So each stage is held against
the same model with what it should make use of taken away: another context, other embeddings, random picks.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refrag.data.contexts import ContextMaker, TokenisedContext
from refrag.data.sources import TextSource
from refrag.data.windows import heldout_windows
from refrag.model.checkpoint import Checkpoint
from refrag.model.policy import sample_in_turn
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import (
    ContextBatch,
    MixedBatch,
    MixedExample,
    Segment,
    collate_contexts,
    collate_mixed,
    question_segments,
)
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.preset_file import load_preset
from refrag.training.recipe import CHECKPOINT, load_run, train_all
from refrag.training.stages.continuation import continuation_batch
from refrag.training.stages.finetune import selection_loss
from refrag.training.stages.policy import PolicyOptimisation
from refrag.training.stages.questions import policy_logits
from refrag.training.stages.reconstruct import reconstruction_batch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("accelerator_of_module")]

PRESET = load_preset("tiny")
CHUNK_SIZE = PRESET.pair.chunk_size
NUM_CONTEXTS, NUM_PASSAGES = 480, 2
NUM_WINDOWS, NUM_CHUNKS, NUM_CONTINUED = 200, 8, 32
EXPAND_FRACTION = 0.1
NUM_RANDOM_SELECTIONS = 8
# A difference counts where it is this many times its standard error.
SURE = 4.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, accelerator_of_module) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    for name, cost in train_all(PRESET, folder).items():
        print(name, cost)
    return folder


@pytest.fixture(scope="module")
def contexts(runs) -> list[TokenisedContext]:
    """Return contexts with one question each, about entities whose names no training world has."""
    rng = random.Random(0)
    maker = ContextMaker.draw(rng, load_run(PRESET, runs, "base").chunker, "heldout")
    return [maker.ask_one(rng, "fact", NUM_PASSAGES) for _ in range(NUM_CONTEXTS)]


@pytest.fixture(scope="module")
def windows(runs) -> list[list[int]]:
    tokenizer = load_run(PRESET, runs, "base").decoder_tokenizer
    num_tokens = NUM_CHUNKS * CHUNK_SIZE + NUM_CONTINUED
    return heldout_windows(TextSource(kind="world"), tokenizer, num_tokens, NUM_WINDOWS, seed=0)


def assert_below(losses: Tensor, control: Tensor, what: str) -> None:
    """Assert that the mean loss is below that of its paired control, by SURE times the standard error or more."""
    differences = control - losses
    mean, error = float(differences.mean()), float(differences.std() / len(differences) ** 0.5)
    numbers = f"{what}: {losses.mean():.3f}, control {control.mean():.3f}, difference {mean:.3f} ± {error:.3f}"
    print(numbers)
    assert mean > max(0.0, SURE * error), f"{numbers}; it must be {SURE} times its standard error"


def answer_losses(
    checkpoint: Checkpoint, shown: Sequence[TokenisedContext], asked: Sequence[TokenisedContext]
) -> Tensor:
    """Return each answer's log-perplexity; passages of `shown` stand as plain text before the question of `asked`."""
    examples = [
        MixedExample(context.chunks, range(len(context.chunks)), question_segments(other.questions[0]))
        for context, other in zip(shown, asked, strict=True)
    ]
    return losses_of(checkpoint, collate(checkpoint, examples))


def batch_of(checkpoint: Checkpoint, contexts: Sequence[TokenisedContext]) -> ContextBatch:
    return collate_contexts(checkpoint.chunker, list(contexts))


def collate(checkpoint: Checkpoint, examples: Sequence[MixedExample]) -> MixedBatch:
    return collate_mixed(examples, checkpoint.decoder.vocab_size, checkpoint.chunker.frame.bos_ids)


@torch.no_grad()
def losses_of(checkpoint: Checkpoint, batch: MixedBatch, embeddings: Tensor | None = None) -> Tensor:
    """Mean loss of the predicted tokens of each example."""
    return predict(checkpoint.decoder, batch, embeddings).mean_loss_per_example(int(batch.example_ids.max()) + 1)


@torch.no_grad()
def embed(checkpoint: Checkpoint, batch: MixedBatch) -> Tensor:
    return checkpoint.projector(encode(checkpoint.encoder, batch.chunks))


def others(contexts: Sequence[TokenisedContext]) -> list[TokenisedContext]:
    """Return the same contexts, each in another's place."""
    return [*contexts[1:], contexts[0]]


@pytest.mark.parametrize("run", ["base", "plain"])
def test_the_plain_decoder_answers_from_its_passages(runs, contexts, run):
    checkpoint = load_run(PRESET, runs, run)
    right = answer_losses(checkpoint, contexts, contexts)
    wrong = answer_losses(checkpoint, others(contexts), contexts)
    assert_below(right, wrong, f"{run}: log-perplexity of answers, control: passages of another question")


def test_chunk_embeddings_give_back_their_own_text(runs, windows):
    checkpoint = load_run(PRESET, runs, "reconstruct")
    texts = [window[: NUM_CHUNKS * CHUNK_SIZE] for window in windows]
    batch = reconstruction_batch(checkpoint, texts, CHUNK_SIZE)
    embeddings = embed(checkpoint, batch)
    given_back = losses_of(checkpoint, batch, embeddings)
    of_others = losses_of(checkpoint, batch, embeddings.roll(NUM_CHUNKS, 0))
    alone = losses_of(checkpoint, collate(checkpoint, [MixedExample([], [], [Segment(text, 1.0)]) for text in texts]))
    assert_below(given_back, of_others, "reconstruct: log-perplexity of text, control: embeddings of other text")
    assert_below(given_back, alone, "reconstruct: log-perplexity of text, control: no embeddings at all")


@pytest.mark.parametrize("run", ["continue", "selective"])
def test_a_continuation_follows_from_the_chunk_embeddings_before_it(runs, windows, run):
    checkpoint = load_run(PRESET, runs, run)
    batch = continuation_batch(checkpoint, windows, CHUNK_SIZE, NUM_CHUNKS, [[] for _ in windows])
    embeddings = embed(checkpoint, batch)
    continued = losses_of(checkpoint, batch, embeddings)
    shuffled = losses_of(checkpoint, batch, embeddings.roll(NUM_CHUNKS, 0))
    zeroed = losses_of(checkpoint, batch, torch.zeros_like(embeddings))
    assert_below(continued, shuffled, f"{run}: log-perplexity of what follows, control: embeddings of other text")
    assert_below(continued, zeroed, f"{run}: log-perplexity of what follows, control: zeroed embeddings")


def test_expanded_chunks_say_more_than_compressed_ones(runs, windows):
    checkpoint = load_run(PRESET, runs, "selective")
    rng = random.Random(0)
    losses = []
    for num_expanded in (NUM_CHUNKS // 2, 0):
        expanded = [rng.sample(range(NUM_CHUNKS), num_expanded) for _ in windows]
        batch = continuation_batch(checkpoint, windows, CHUNK_SIZE, NUM_CHUNKS, expanded)
        losses.append(losses_of(checkpoint, batch, embed(checkpoint, batch)))
    assert_below(*losses, "selective: log-perplexity with half of the chunks expanded, control: none")


@torch.no_grad()
def logits_of(checkpoint: Checkpoint, batch: ContextBatch) -> Tensor:
    vectors, question_vectors = (encode(checkpoint.encoder, each) for each in (batch.chunks, batch.questions))
    return policy_logits(checkpoint.policy, batch, vectors, question_vectors)


def test_the_fine_tuned_policy_finds_the_evidence(runs, contexts):
    checkpoint = load_run(PRESET, runs, "finetune")
    batch = batch_of(checkpoint, contexts)
    logits = logits_of(checkpoint, batch)
    _, recall = selection_loss(logits, batch.policy)
    at_random = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    _, chance = selection_loss(at_random.masked_fill(logits.isinf(), float("-inf")), batch.policy)
    print(f"finetune: recall of evidence {recall:.3f}, control: random picks {chance:.3f}")
    assert recall > 2 * chance, f"recall of evidence is {recall:.3f}, that of random picks {chance:.3f}"


@pytest.mark.parametrize("run", ["finetune", "policy", "policy_blind"])
def test_what_the_policy_picks_makes_answers_likelier_than_random_picks_do(runs, contexts, run):
    checkpoint = load_run(PRESET, runs, run)
    batch = batch_of(checkpoint, contexts)
    logits = logits_of(checkpoint, batch)
    budgets = torch.tensor([max(1, expansion_budget(EXPAND_FRACTION, len(context.chunks))) for context in contexts])
    generator = torch.Generator().manual_seed(0)
    uniform = torch.zeros_like(logits).masked_fill(logits.isinf(), float("-inf"))
    by_chance = sample_in_turn(uniform, budgets, NUM_RANDOM_SELECTIONS, generator)
    ranked = logits.argsort(descending=True)[:, : by_chance.shape[-1]].unsqueeze(1)  # (P, 1, T)
    picked = ranked.masked_fill(by_chance[:, :1] < 0, -1)
    assert_below(
        -mean_rewards(checkpoint, batch, picked),
        -mean_rewards(checkpoint, batch, by_chance),
        f"{run}: minus the reward of its picks, control: random picks",
    )


@torch.no_grad()
def mean_rewards(checkpoint: Checkpoint, batch: ContextBatch, picks: Tensor) -> Tensor:
    """Return each question's mean reward over its selections.  (P, G, T) -> (P,)"""
    objective = PolicyOptimisation(checkpoint, PRESET.runs["policy"])
    vectors = encode(checkpoint.encoder, batch.chunks)
    groups = [objective.rewards(batch, vectors, group.unsqueeze(1))[0] for group in picks.unbind(1)]
    return torch.cat(groups, 1).mean(1)


# A run that is killed

NUM_STEPS = 40
# Far beyond what a busy machine needs.
PATIENCE_SECONDS = 600
OVERRIDES = [
    f"runs.reconstruct.optimisation.num_steps={NUM_STEPS}",
    "runs.reconstruct.optimisation.snapshot_seconds=0",
    "runs.reconstruct.tokens_per_step=256",
]


def start_reconstruction(folder: Path) -> subprocess.Popen[str]:
    overrides = [part for override in OVERRIDES for part in ("--set", override)]
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "refrag_client.cli.main",
        "train",
        "run",
        "tiny",
        "reconstruct",
        *overrides,
    ]
    # Sums over several threads are not always taken in the same order.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*command, "--runs", str(folder)], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, errors


def kill_after_a_snapshot(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not list((folder / "reconstruct" / "snapshot").glob("*/run.json")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no snapshot within ten minutes"
            time.sleep(0.01)
    finally:
        process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_started_again_ends_bit_for_bit_as_if_unbroken(runs, tmp_path):
    for folder in (tmp_path / "whole", tmp_path / "broken"):
        shutil.copytree(runs / "base" / CHECKPOINT, folder / "base" / CHECKPOINT)
    finish(start_reconstruction(tmp_path / "whole"))
    kill_after_a_snapshot(start_reconstruction(tmp_path / "broken"), tmp_path / "broken")
    assert not (tmp_path / "broken" / "reconstruct" / CHECKPOINT).exists()
    finish(start_reconstruction(tmp_path / "broken"))
    whole, broken = (load_run(PRESET, tmp_path / name, "reconstruct") for name in ("whole", "broken"))
    for part, module in whole.modules.items():
        weights = broken.modules[part].state_dict()
        different = [name for name, value in module.state_dict().items() if not torch.equal(value, weights[name])]
        assert not different, f"{part} differs in {different}"
    curves = [losses_logged(tmp_path / name) for name in ("whole", "broken")]
    assert [step for step, _ in curves[1]] == list(range(1, NUM_STEPS + 1))
    assert curves[0] == curves[1]


def losses_logged(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "reconstruct" / "metrics.jsonl").read_text().splitlines()
    return [(figures["step"], figures["loss"]) for figures in map(json.loads, lines)]
