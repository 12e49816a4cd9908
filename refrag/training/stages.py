"""The stages of the demo recipe: what each draws, feeds and minimises (paper §3, and where we differ).

plain         decoder alone, question answering over plain passages: there is no pretrained decoder here
reconstruct   decoder frozen; [e_1..e_L] then their tokens, few chunks first, many last (paper stage 1)
joint         everything; mixed prompts with questions, and the policy's warm start from labels
"""

import itertools
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from refrag.chunking import Chunk, Chunker
from refrag.model.checkpoint import Checkpoint
from refrag.model.policy import pick_in_turn
from refrag.selection import expansion_budget
from refrag.training.batches import (
    LossWeights,
    MixedBatch,
    MixedExample,
    PolicyBatch,
    collate_mixed,
    collate_policy,
    encoder_tensors,
    first_rows,
)
from refrag.training.data import TokenisedContext, draw_context

# B sequences, S slots, N chunks of the batch, C chunks of the longest context, P (context, question) pairs

Figures = dict[str, float]

POLICY_LOSS_WEIGHT = 0.5
# Recall is logged at the budget that serving has by default.
RECALL_FRACTION = 0.1
QUESTIONS_PER_CONTEXT = 6
# Context tokens per step. Few passages mean many contexts, so that a step costs about the same at any length.
TOKENS_PER_STEP = 4096
TOKENS_PER_PASSAGE = 56
# Plain contexts of many passages cost the most and teach the least: half of the choices are short.
PLAIN_PASSAGES = [1, 2, 3, 4, 6, 8, 12, 18]


class PlainStage:
    """Question answering over plain passages, one passage first, more as training proceeds."""

    def __init__(self, checkpoint: Checkpoint, max_passages: int = 4, tokens_per_step: int = TOKENS_PER_STEP) -> None:
        self.checkpoint, self.max_passages, self.tokens_per_step = checkpoint, max_passages, tokens_per_step

    def step(self, rng: random.Random, progress: float) -> tuple[Tensor, Figures]:
        most = 1 if progress < 0.4 else max(1, round(self.max_passages * min(1.0, progress / 0.8)))
        num_passages = rng.randint(1, most)
        contexts = draw_contexts(rng, self.checkpoint.chunker, num_passages, self.tokens_per_step)
        batch = collate(self.checkpoint, all_expanded(contexts), LossWeights())
        loss, figures = answer_loss(self.checkpoint, batch, chunk_embeddings=None)
        return loss, {"loss": loss.item(), f"accuracy_{num_passages}": figures["accuracy"]}


class ReconstructStage:
    """[e_1..e_L][x_1..x_s], teacher-forced, with the decoder frozen (paper stage 1)."""

    CURRICULUM = (1, 2, 4, 8, 16)

    def __init__(self, checkpoint: Checkpoint, tokens_per_step: int = TOKENS_PER_STEP) -> None:
        self.checkpoint, self.tokens_per_step = checkpoint, tokens_per_step
        checkpoint.decoder.requires_grad_(False)

    def step(self, rng: random.Random, progress: float) -> tuple[Tensor, Figures]:
        num_chunks = self.draw_num_chunks(rng, progress)
        chunker = draw_chunker(self.checkpoint, rng)
        chunk_size = chunker.config.chunk_size
        runs = self.draw_runs(rng, chunker, num_chunks, max(1, self.tokens_per_step // (2 * num_chunks * chunk_size)))
        examples = [
            MixedExample(run, set(), [], first_row) for run, first_row in zip(runs, itertools.count(0, num_chunks))
        ]
        vectors = encode_chunks(self.checkpoint, chunker, runs)
        embeddings = self.checkpoint.projector(vectors)
        loss, accuracy = self.reconstruction_loss(examples, embeddings)
        return loss, {"loss": loss.item(), f"accuracy_{num_chunks}x{chunk_size}": accuracy}

    def draw_num_chunks(self, rng: random.Random, progress: float) -> int:
        """Mostly the current step of the curriculum, sometimes an earlier one, as in the paper's geometric mixture."""
        current = min(len(self.CURRICULUM) - 1, int(progress * 1.2 * len(self.CURRICULUM)))
        return self.CURRICULUM[current if rng.random() < 0.7 else rng.randint(0, current)]

    def draw_runs(self, rng: random.Random, chunker: Chunker, num_chunks: int, count: int) -> list[list[Chunk]]:
        """`count` runs of `num_chunks` consecutive chunks."""
        runs: list[list[Chunk]] = []
        while len(runs) < count:
            chunks = draw_context(rng, chunker, 1 + num_chunks // 2, 1, "train").chunks
            runs += [chunks[i : i + num_chunks] for i in range(0, len(chunks) - num_chunks + 1, num_chunks)]
        return runs[:count]

    def reconstruction_loss(self, examples: list[MixedExample], embeddings: Tensor) -> tuple[Tensor, float]:
        decoder, tokenizer = self.checkpoint.decoder, self.checkpoint.decoder_tokenizer
        compressed = collate_mixed(examples, decoder.vocab_size, tokenizer.bos_token_id, LossWeights())
        tokens = [[t for chunk in example.chunks for t in chunk.token_ids] for example in examples]
        width = max(map(len, tokens))
        targets = torch.full((len(tokens), width), -100)
        for row, ids in enumerate(tokens):
            targets[row, : len(ids)] = torch.tensor(ids)
        input_ids = torch.cat([compressed.input_ids, targets[:, :-1].clamp(min=0)], 1)
        states = decoder.backbone.base_model(
            inputs_embeds=decoder.embed_prompt(input_ids, embeddings)
        ).last_hidden_state
        logits = decoder.backbone.get_output_embeddings()(states[:, -width:])
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        right = (logits.argmax(-1) == targets)[targets >= 0]
        return loss, float(right.float().mean())


class JointStage:
    """Everything trains: mixed prompts with questions, and the policy's warm start from labels.

    Most steps have the form of serving: one question, and the chunks that the policy picks for it. The others keep
    what that form does not need: reading compressed chunks, and the plain decoder. Unlike in the paper the
    policy's loss reaches the encoder, so that chunk vectors learn to tell what a chunk is about.
    """

    PLAIN_SHARE, COMPRESSED_SHARE = 0.15, 0.2

    def __init__(self, checkpoint: Checkpoint, max_passages: int = 20, tokens_per_step: int = TOKENS_PER_STEP) -> None:
        self.checkpoint, self.max_passages, self.tokens_per_step = checkpoint, max_passages, tokens_per_step
        checkpoint.decoder.requires_grad_(True)

    def step(self, rng: random.Random, progress: float) -> tuple[Tensor, Figures]:
        draw = rng.random()
        if draw < self.PLAIN_SHARE:
            return self.plain_step(rng, progress)
        chunker = draw_chunker(self.checkpoint, rng)
        most = max(2, round(self.max_passages * min(1.0, progress / 0.6)))
        contexts = draw_contexts(rng, chunker, rng.randint(1, most), self.tokens_per_step)
        vectors = encode_chunks(self.checkpoint, chunker, [context.chunks for context in contexts])
        policy_batch = collate_policy(contexts)
        logits = self.policy_logits(chunker, contexts, policy_batch, vectors)
        policy_loss, recall = selection_loss(logits, policy_batch)
        if draw < self.PLAIN_SHARE + self.COMPRESSED_SHARE:
            form, examples = "compressed", all_questions_at_once(rng, contexts)
        else:
            confidence = self.checkpoint.config.policy_confidence
            form, examples = "served", each_question_as_served(rng, contexts, logits.detach(), confidence)
        batch = collate(self.checkpoint, examples, LossWeights(other=0.1))
        loss, figures = answer_loss(self.checkpoint, batch, self.checkpoint.projector(vectors))
        figures = {
            "loss": loss.item(),
            "policy": policy_loss.item(),
            "recall": recall,
            f"{form}_accuracy": figures["accuracy"],
        }
        return loss + POLICY_LOSS_WEIGHT * policy_loss, figures

    def plain_step(self, rng: random.Random, progress: float) -> tuple[Tensor, Figures]:
        allowed = [n for n in PLAIN_PASSAGES if n <= max(4, self.max_passages * progress)]
        num_passages = rng.choice(allowed)
        contexts = draw_contexts(rng, self.checkpoint.chunker, num_passages, self.tokens_per_step)
        batch = collate(self.checkpoint, all_expanded(contexts), LossWeights())
        loss, figures = answer_loss(self.checkpoint, batch, chunk_embeddings=None)
        return loss, {f"plain_accuracy_{num_passages}": figures["accuracy"]}

    def policy_logits(
        self, chunker: Chunker, contexts: list[TokenisedContext], batch: PolicyBatch, vectors: Tensor
    ) -> Tensor:
        """One row of logits per question.  -> (P, C)"""
        questions = [question.chunks for context in contexts for question in context.questions]
        question_vectors = encode_chunks(self.checkpoint, chunker, questions)
        return self.checkpoint.policy(
            vectors[batch.chunk_rows], batch.passages, question_vectors[batch.question_rows], batch.question_mask
        )


def all_expanded(contexts: Sequence[TokenisedContext]) -> list[MixedExample]:
    """Plain prompts with all questions; no row of chunk embeddings is read."""
    return [MixedExample(context.chunks, set(range(len(context.chunks))), context.questions) for context in contexts]


def all_questions_at_once(rng: random.Random, contexts: Sequence[TokenisedContext]) -> list[MixedExample]:
    """One sequence per context with a random share of its chunks expanded (paper stage 3), often none."""
    examples = []
    for context, first_row in zip(contexts, first_rows(contexts), strict=True):
        num_chunks = len(context.chunks)
        budget = expansion_budget(rng.choice([0.0, 0.0, 0.1, 0.3]), num_chunks)
        expanded = set(rng.sample(range(num_chunks), budget))
        examples.append(MixedExample(context.chunks, expanded, context.questions, first_row))
    return examples


def each_question_as_served(
    rng: random.Random, contexts: Sequence[TokenisedContext], logits: Tensor, confidence: float
) -> list[MixedExample]:
    """One sequence per question, with the chunks expanded that the policy picks for it.

    The picks of training are those of serving, with their distractors; some sequences get the whole budget, and some
    the labelled chunks among random ones, so that the decoder learns to read before the policy can pick.
    """
    examples, row = [], 0
    for context, first_row in zip(contexts, first_rows(contexts), strict=True):
        num_chunks = len(context.chunks)
        for question in context.questions:
            budget = max(1, expansion_budget(rng.choice([0.1, 0.1, 0.2]), num_chunks))
            source = rng.random()
            if source < 0.2:
                picks = [*question.answer_chunks, *rng.sample(range(num_chunks), min(2, num_chunks))]
            else:
                picks = pick_in_turn(logits[row, :num_chunks], budget, confidence if source < 0.8 else 1.0)
            examples.append(MixedExample(context.chunks, set(picks), [question], first_row))
            row += 1
    return examples


def selection_loss(logits: Tensor, batch: PolicyBatch) -> tuple[Tensor, float]:
    """Cross-entropy of the softmax over chunks against the chunks that hold the answer, and their recall."""
    log_probabilities = logits.log_softmax(-1).masked_fill(batch.passages < 0, 0.0)  # (P, C)
    loss = -(log_probabilities * batch.answers).sum(1) / batch.answers.sum(1)
    with torch.no_grad():
        budgets = [expansion_budget(RECALL_FRACTION, count) for count in (batch.passages >= 0).sum(1).tolist()]
        rank = logits.argsort(-1, descending=True).argsort(-1)
        found = ((rank < torch.tensor(budgets).unsqueeze(1)) * batch.answers).sum() / batch.answers.sum()
    return loss.mean(), float(found)


def answer_loss(checkpoint: Checkpoint, batch: MixedBatch, chunk_embeddings: Tensor | None) -> tuple[Tensor, Figures]:
    """Weighted next-token loss over the text of the batch, and the accuracy on answer tokens."""
    decoder = checkpoint.decoder
    if chunk_embeddings is None:
        chunk_embeddings = torch.zeros(0, decoder.width)
    embedded = decoder.embed_prompt(batch.input_ids, chunk_embeddings)  # (B, S, D)
    states = decoder.backbone.base_model(inputs_embeds=embedded).last_hidden_state
    counted = batch.weights > 0
    logits = decoder.backbone.get_output_embeddings()(states[counted])  # only where there is something to predict
    labels, weights = batch.labels[counted], batch.weights[counted]
    losses = functional.cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(-1) == labels)[batch.is_answer[counted]]
    return (losses * weights).sum() / weights.sum(), {"accuracy": float(right.float().mean())}


def draw_contexts(rng: random.Random, chunker: Chunker, num_passages: int, num_tokens: int) -> list[TokenisedContext]:
    """As many contexts as make up about `num_tokens`, two at least."""
    count = max(2, num_tokens // (num_passages * TOKENS_PER_PASSAGE + 100))
    return [draw_context(rng, chunker, num_passages, QUESTIONS_PER_CONTEXT, "train") for _ in range(count)]


def collate(checkpoint: Checkpoint, examples: Sequence[MixedExample], weights: LossWeights) -> MixedBatch:
    bos_id = checkpoint.decoder_tokenizer.bos_token_id
    return collate_mixed(examples, checkpoint.decoder.vocab_size, bos_id, weights)


def encode_chunks(checkpoint: Checkpoint, chunker: Chunker, runs: Sequence[Sequence[Chunk]]) -> Tensor:
    """Vectors of all chunks of all runs in order.  -> (N, E)"""
    return checkpoint.encoder(*encoder_tensors(chunker, [chunk for run in runs for chunk in run]))


def draw_chunker(checkpoint: Checkpoint, rng: random.Random) -> Chunker:
    """A chunker with one of the chunk sizes that the checkpoint is trained for."""
    return checkpoint.with_chunk_size(rng.choice(checkpoint.config.trained_chunk_sizes)).chunker
