"""Supervised fine-tuning (paper §4, stage 5): questions over retrieved passages, only the answers in the loss.

Most mixed batches have the form of serving: one question, and the chunks that the policy selects for it expanded.
The plain form gives a decoder without compression the same questions over the same passages, and the same text.

It differs from the paper's in two ways. The policy may learn here already, from labels (which chunks hold what the
answer needs), and its loss reaches the encoder, so that chunk vectors learn to tell what a chunk is about. Text may
stand beside the questions, as in continual pre-training, because from answers alone a small decoder forgets prose.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from refrag.data.contexts import TokenisedContext
from refrag.model.checkpoint import Checkpoint
from refrag.model.policy import pick_in_turn
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import (
    ContextBatch,
    EncoderBatch,
    MixedBatch,
    MixedExample,
    collate_contexts,
    collate_mixed,
    first_rows,
    question_segments,
)
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import Prediction, encode, predict
from refrag.training.backbones import let_train
from refrag.training.curriculum import passage_counts
from refrag.training.memory import VectorMemory
from refrag.training.objective import Objective, Outcome
from refrag.training.settings import Continue, Finetune, Replay
from refrag.training.stages.continuation import ContinueSource
from refrag.training.stages.questions import plain_example, policy_logits, train_policy
from refrag.training.stages.rows import ContextSource
from refrag.training.stages.selection import selection_loss

# P (context, question) pairs, C chunks of the longest context, N chunks of the batch, E encoder width

# Share of the mixed batches that are not plain in which all questions of a context stand behind it, with random chunks
# expanded.
DENSE_SHARE = 0.25
# In the form of serving, some sequences spend the whole budget, however sure the policy is.
WHOLE_BUDGET_SHARE = 0.3


@dataclass(frozen=True)
class FinetuneBatch(Movable):
    """Questions, and in some batches text beside them.

    text: it joins the questions in one batch, because every batch must reach all parts that train.
    """

    questions: MixedBatch | ContextBatch
    text: MixedBatch | None = None


class FinetuneSource(ContextSource[Finetune]):
    """Source of questions, from files or each batch over a world of its own, and of the text replayed beside them."""

    def __init__(
        self, checkpoint: Checkpoint, settings: Finetune, process_index: int = 0, num_processes: int = 1
    ) -> None:
        super().__init__(checkpoint, settings)
        self.head_ids = checkpoint.chunker.frame.head_ids
        self.text = None
        if settings.replay is not None:
            continued = continuation_settings(settings, settings.replay)
            self.text = ContinueSource(checkpoint, continued, process_index, num_processes)

    def draw(self, rng: random.Random, progress: float) -> FinetuneBatch:
        questions = self.draw_questions(rng, progress)
        if self.text is None or not self.has_text(progress):
            return FinetuneBatch(questions)
        return FinetuneBatch(questions, self.text.draw(rng, progress))

    def has_text(self, progress: float) -> bool:
        """Return whether the batches of the step at this progress have text.

        All processes agree, for those that share the weights must call each part equally often.
        """
        replay = self.settings.replay
        shared = random.Random(f"{self.settings.optimisation.seed} text {progress}")
        return replay is not None and shared.random() < replay.share

    def draw_questions(self, rng: random.Random, progress: float) -> MixedBatch | ContextBatch:
        settings, chunker = self.settings, self.draw_chunker(rng)
        num_passages = rng.choice(passage_counts(settings.max_passages, progress))
        contexts = self.draw_contexts(rng, chunker, num_passages)
        if settings.form == "plain":
            examples = [plain_example(context, 0.0, 1.0, 0.0) for context in contexts]
            window = self.checkpoint.config.max_prompt_slots
            return collate_mixed(
                examples, self.checkpoint.decoder.vocab_size, self.head_ids, settings.row_slots, window
            )
        return collate_contexts(chunker, list(contexts), seed=rng.getrandbits(32))

    def state(self) -> dict[str, Any]:
        """Return the position in the text; questions have none, because every batch draws its own."""
        return {} if self.text is None else self.text.state()

    def restore(self, state: dict[str, Any]) -> None:
        if self.text is not None:
            self.text.restore(state)


def continuation_settings(settings: Finetune, replay: Replay) -> Continue:
    """Return the settings of the replayed text: continual pre-training, with the questions' expand fractions."""
    return Continue(
        stage="continue",
        optimisation=settings.optimisation,
        tokens_per_step=settings.tokens_per_step,
        sources=replay.sources,
        curriculum=replay.curriculum,
        continuation_tokens=replay.continuation_tokens,
        expand_fractions=settings.expand_fractions,
        form=settings.form,
    )


class Finetuning(Objective):
    """Loss of the answers, the replayed text and the policy; everything trains, in the plain form the decoder alone."""

    def __init__(self, checkpoint: Checkpoint, settings: Finetune) -> None:
        super().__init__()
        self.settings = settings
        plain = settings.plain_share
        self.form_shares = (plain, (1 - plain) * DENSE_SHARE, (1 - plain) * (1 - DENSE_SHARE))
        self.confidence = checkpoint.config.policy_confidence
        self.head_ids, self.window = checkpoint.chunker.frame.head_ids, checkpoint.config.max_prompt_slots
        self.decoder = checkpoint.decoder
        let_train(self.decoder)
        if settings.form == "mixed":
            self.encoder, self.projector = checkpoint.encoder, checkpoint.projector
            self.policy = checkpoint.require_policy()
            let_train(self.encoder, settings.encoder_trains)
            let_train(self.projector)
            self.memory = None if settings.encoder_trains else VectorMemory(self.encoder)
            train_policy(self.policy, settings.policy_loss_weight > 0)

    def forward(self, batch: FinetuneBatch, rollout_seed: int | None = None) -> Outcome:
        questions, text = batch.questions, batch.text
        outcome = self.mixed(questions) if isinstance(questions, ContextBatch) else self.plain(questions)
        return outcome if text is None else self.with_text(outcome, text)

    def with_text(self, outcome: Outcome, batch: MixedBatch) -> Outcome:
        embeddings = None if batch.chunks is None else self.projector(self.encode(batch.chunks))
        prediction = predict(self.decoder, batch, embeddings)
        figures = {"text_loss": prediction.loss.item(), "text_accuracy": prediction.accuracy}
        return Outcome(outcome.loss + prediction.loss, outcome.figures | figures)

    def plain(self, batch: MixedBatch) -> Outcome:
        return self.answers(predict(self.decoder, batch), "plain")

    def answers(self, prediction: Prediction, form: str) -> Outcome:
        """Return the loss of the answers, with the divergence from a teacher where there is one."""
        loss, figures = prediction.loss, {"loss": prediction.loss.item(), f"{form}_accuracy": prediction.accuracy}
        if len(prediction.divergences):
            divergence = prediction.divergences.mean().to(loss.dtype)
            loss = loss + self.settings.distillation_weight * divergence
            figures["divergence"] = divergence.item()
        return Outcome(loss, figures)

    def mixed(self, batch: ContextBatch) -> Outcome:
        """Return the outcome of a batch in a form drawn for it; all forms train the policy, whose loss joins theirs.

        Even a batch of plain prompts does: every batch must reach all parts that train.
        """
        rng = random.Random(batch.seed)
        vectors = self.encode(batch.chunks)  # (N, E)
        logits = self.policy_logits(batch, vectors)  # (P, C)
        form = rng.choices(("plain", "dense", "served"), self.form_shares)[0]
        if form == "plain":
            examples = [plain_example(context, 0.0, 1.0, 0.0) for context in batch.contexts]
        elif form == "dense":
            examples = self.all_questions_at_once(rng, batch.contexts)
        else:
            examples = self.each_question_as_served(rng, batch.contexts, logits.detach().cpu())
        row_slots, window = self.settings.row_slots, self.window
        mixed = collate_mixed(examples, self.decoder.vocab_size, self.head_ids, row_slots, window).to(vectors.device)
        loss, figures = self.answers(predict(self.decoder, mixed, self.projector(vectors)), form)
        policy_loss, recall = selection_loss(logits, batch.policy)
        figures = {**figures, "policy_loss": policy_loss.item(), "recall": recall}
        return Outcome(loss + self.settings.policy_loss_weight * policy_loss, figures)

    def encode(self, chunks: EncoderBatch) -> Tensor:
        """Return the vectors of the chunks; those of a frozen encoder are remembered.  (N, L) -> (N, E)"""
        return encode(self.encoder, chunks) if self.memory is None else self.memory.encode(chunks)

    def policy_logits(self, batch: ContextBatch, vectors: Tensor) -> Tensor:
        """Return one row of logits per question.  (N, E) -> (P, C)"""
        return policy_logits(self.policy, batch, vectors, self.encode(batch.questions))

    def all_questions_at_once(self, rng: random.Random, contexts: Sequence[TokenisedContext]) -> list[MixedExample]:
        """Make one sequence per context, with a random share of its chunks expanded, often none."""
        examples = []
        for context, first_row in zip(contexts, first_rows(c.chunks for c in contexts), strict=True):
            num_chunks = len(context.chunks)
            budget = expansion_budget(rng.choice(self.settings.expand_fractions), num_chunks)
            segments = [segment for question in context.questions for segment in question_segments(question)]
            examples.append(MixedExample(context.chunks, rng.sample(range(num_chunks), budget), segments, first_row))
        return examples

    def each_question_as_served(
        self, rng: random.Random, contexts: Sequence[TokenisedContext], logits: Tensor
    ) -> list[MixedExample]:
        """Make one sequence per question, with those chunks expanded that the policy selects, distractors included."""
        examples, row, labelled = [], 0, self.settings.labelled_share
        for context, first_row in zip(contexts, first_rows(c.chunks for c in contexts), strict=True):
            num_chunks = len(context.chunks)
            for question in context.questions:
                budget = expansion_budget(rng.choice(self.settings.expand_fractions), num_chunks)
                draw = rng.random()
                if draw < labelled:
                    picks = [*question.evidence_chunks, *rng.sample(range(num_chunks), min(2, num_chunks))]
                else:
                    confidence = 1.0 if draw < labelled + WHOLE_BUDGET_SHARE else self.confidence
                    picks = pick_in_turn(logits[row, :num_chunks], budget, confidence)
                examples.append(MixedExample(context.chunks, set(picks), question_segments(question), first_row))
                row += 1
        return examples
