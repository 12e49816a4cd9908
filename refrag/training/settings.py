"""Settings of the runs of a recipe, each of which trains one stage. All their defaults are written here.

Those of the pair are in `refrag.training.pair_settings`; `refrag.training.preset` puts both together.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from refrag.data.sources import TextSource
from refrag.data.tasks import TASKS, Task
from refrag.settings import Settings
from refrag.training.pair_settings import Share

Part = Literal["encoder", "projector", "decoder", "policy", "readout"]


class Optimisation(Settings):
    """Length, optimizer and learning rate of a run, and what it keeps in memory.

    num_steps: steps in all; one step takes `accumulation_steps` batches on every process.
    learning_rate: its peak, at the end of the warm-up.
    part_learning_rates: peaks of single parts, such as {encoder: 1.0e-4}; the others have `learning_rate`. AdamW alone.
    optimizer: "adamw" as in the paper, or "muon" for the matrices inside the networks and AdamW for all else. Muon
        does not train under FSDP.
    warmup_fraction: share of the steps over which the learning rate rises; then it falls as a cosine.
    final_fraction: learning rate at the end, as a share of its peak.
    weight_decay: applies to the matrices inside the networks alone, not to embeddings, output heads or biases.
    max_gradient_norm: gradients of a larger norm are scaled down to it.
    accumulation_steps: batches per process whose gradients are averaged in one step.
    mixed_precision: "bf16" computes in bfloat16 and keeps the weights in float32; "auto" does so where it
        is faster: on a GPU that has it, and on a CPU with AMX.
    gradient_checkpointing: compute activations anew in the backward pass, which takes less memory and more time.
    num_workers: processes that draw batches ahead of an accelerator. Text is drawn by one; on a CPU none are started.
    snapshot_seconds: seconds from one snapshot to the next; 0 saves after every step.
    seed: decides which batches are drawn, and every other random number of the run.
    """

    num_steps: PositiveInt
    learning_rate: PositiveFloat
    part_learning_rates: dict[Part, PositiveFloat] = {}
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup_fraction: Share = 0.04
    final_fraction: Share = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_gradient_norm: PositiveFloat = 1.0
    accumulation_steps: PositiveInt = 1
    mixed_precision: Literal["no", "bf16", "auto"] = "no"
    gradient_checkpointing: bool = False
    num_workers: Annotated[int, Field(ge=0)] = 2
    snapshot_seconds: Annotated[float, Field(ge=0)] = 120.0
    seed: int = 0

    @model_validator(mode="after")
    def _optimizer_takes_rates(self) -> "Optimisation":
        if self.part_learning_rates and self.optimizer == "muon":
            raise ValueError("part_learning_rates needs optimizer: adamw; muon has one learning rate for all parts")
        return self


class Curriculum(Settings):
    """Lengths of the examples as training goes on: short ones first, long ones last (paper §3 and its Table 8).

    Training passes through stages, counted from 0. Stage j has a·ratios[i]^j samples of `num_chunks[i]` chunks, where
    `a` is such that every i has the same number of samples in all. With one entry there is no curriculum.

    num_chunks: numbers of chunks that an example may have.
    ratios: one for each number of chunks; further ones are ignored.
    num_stages: number of stages.
    stage_lengths: "equal" gives every stage the same number of steps, which makes for more easy examples than in the
        paper. "samples" gives a stage as many steps as its samples take, as in the paper, where the last of nine
        stages is more than half of the training.
    """

    num_chunks: list[PositiveInt] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    ratios: list[PositiveFloat] = [0.333, 0.895, 1.235, 1.744, 2.121, 2.613, 2.907, 2.907, 2.907]
    num_stages: PositiveInt = 9
    stage_lengths: Literal["equal", "samples"] = "equal"

    @model_validator(mode="after")
    def _fits(self) -> "Curriculum":
        if not self.num_chunks or len(self.ratios) < len(self.num_chunks):
            raise ValueError(
                f"num_chunks has {len(self.num_chunks)} entries and ratios has {len(self.ratios)}; "
                "give at least one number of chunks, and as many ratios"
            )
        return self


class Run(Settings):
    """Settings that every run has.

    start: run of the same preset whose checkpoint this one starts from, or folder of any checkpoint; none starts from
        the untrained pair.
    trained_chunk_sizes: every batch has chunks of one of these sizes, drawn at random, and the checkpoint keeps them;
        by default those that the checkpoint it starts from has.
    tokens_per_step: about how many tokens one batch on one process has. A batch of text counts all that the encoder
        and the decoder read. A batch of questions counts each context and each question once, although fine-tuning
        mostly repeats the context for every question. A batch of selections counts the decoder's slots.
    """

    start: str | None = None
    trained_chunk_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    optimisation: Optimisation
    tokens_per_step: PositiveInt = 4096


class QuestionFile(Settings):
    """File of questions, in a form that `refrag.data.questions` reads.

    path: the file, or the folder of a form that has one.
    form: detected if none is named.
    passages: file of the passages, for forms that keep them apart; by default it is looked for beside the questions.
    targets: a teacher's answers to these questions, which `refrag train targets` wrote; they take the place of the
        questions' own, and fine-tuning learns the teacher's distributions too.
    weight: share of the questions that come from this file, relative to the others.
    """

    path: str
    form: str | None = None
    passages: str | None = None
    targets: str | None = None
    weight: PositiveFloat = 1.0


class Questions(Settings):
    """Questions from files in place of those about the made-up world.

    files: where they come from.
    answerless_share: share of the questions whose passages are taken from others, so that nothing answers them; none of
        those with a teacher's answer, nor of those about a document, which any other may answer too.
    """

    files: Annotated[list[QuestionFile], Field(min_length=1)]
    answerless_share: Share = 0.1


class AskingRun(Run):
    """Settings of every run that asks questions.

    tasks: kinds of questions, which `refrag/data/tasks.py` explains.
    max_passages: most passages in a context. One that a teacher answered has at least those that the teacher read.
    rival_share: share of the contexts that ask for single facts among entities of one kind, which nothing but their
        names tells apart.
    row_slots: slots of a row that short examples share without seeing each other; none gives each example a row. One
        example that needs more makes all rows of its batch as long.
    """

    tasks: Annotated[list[Task], Field(min_length=1)] = list(TASKS)
    max_passages: PositiveInt = 10
    rival_share: Share = 0.3
    row_slots: PositiveInt | None = None


class Pretrain(AskingRun):
    """Pretraining of the decoder alone on plain text and plain questions, for pairs without a pretrained decoder.

    Its questions grow harder on a fixed course; `rival_share` counts only after 65 % of the run.

    sources: where the text comes from.
    window_tokens: tokens of each stretch of text.
    recital_share: share of the run, at its start, that is spent on repeating random strings of tokens.
    text_share: share of the later batches that are text; the others are questions.
    """

    stage: Literal["pretrain"]
    sources: list[TextSource]
    window_tokens: PositiveInt = 256
    recital_share: Share = 0.1
    text_share: Share = 0.3


class Recover(Run):
    """A stage before the paper's: each chunk's tokens are read back from its embedding without the decoder.

    For each place the embedding, changed by a matrix of low rank, is a query among the decoder's token embeddings. No
    decoder runs, and encoder and projector start where they keep the tokens.

    sources: where the text comes from.
    rank: rank of the matrices.
    num_negatives: tokens drawn from the vocabulary, to tell from those of the batch.
    rarity_exponent: a token that a batch has n times counts n ** −rarity_exponent each time, so that names and numbers
        are kept before words that the decoder guesses anyway; 0 counts all alike.
    """

    stage: Literal["recover"]
    sources: list[TextSource]
    rank: PositiveInt = 64
    num_negatives: PositiveInt = 2000
    rarity_exponent: Share = 0.5


class Reconstruct(Run):
    """Paper stage 1, reconstruction: the decoder reads chunk embeddings and gives back their tokens.

    sources: where the text comes from.
    curriculum: how many chunks an example has.
    decoder_trains: whether the decoder learns to read embeddings too; in the paper it is frozen.
    """

    stage: Literal["reconstruct"]
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum()
    decoder_trains: bool = False


class Continue(Run):
    """Paper stages 2 and 3, continual pre-training: the decoder reads the chunk embeddings of a text and continues it.

    All but the policy trains.

    sources: where the text comes from.
    curriculum: how many chunks the text before the continuation has.
    continuation_tokens: tokens of the continuation.
    expand_fractions: shares of the chunks to show as tokens; each batch draws one, and its chunks at random. Stage 2
        has 0 alone.
    form: "mixed" trains on chunk embeddings; "plain" shows all of the text as tokens and trains the decoder alone,
        which is the same training for the baseline.
    """

    stage: Literal["continue"]
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum()
    continuation_tokens: PositiveInt = 64
    expand_fractions: list[Share] = [0.0]
    form: Literal["mixed", "plain"] = "mixed"


class Replay(Settings):
    """Text beside the questions of fine-tuning, compressed and continued as in continual pre-training.

    share: share of the batches that have text.
    sources: where the text comes from.
    curriculum: how many chunks the text before the continuation has.
    continuation_tokens: tokens of the continuation.
    """

    share: Share
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum(num_chunks=[16], ratios=[1.0])
    continuation_tokens: PositiveInt = 64


class Finetune(AskingRun):
    """Paper stage 5, fine-tuning: questions over retrieved passages, with nothing but the answers in the loss.

    form: "mixed" compresses the passages; "plain" gives the baseline the same questions over the same passages as
        plain text, and trains the decoder alone.
    expand_fractions: shares of the chunks that may be expanded; each prompt draws one.
    plain_share: share of the batches with every chunk expanded, so that the decoder goes on reading plain passages;
        for the mixed form.
    labelled_share: share of the prompts with the chunks expanded that hold the answer, whatever the policy says, so
        that the decoder learns to read before the policy can select.
    questions: files to take questions from, in place of `tasks` and `rival_share`.
    distillation_weight: weight of the divergence from a teacher's distributions, beside the cross-entropy of its
        answer, where `questions` names targets.
    encoder_trains: whether the encoder trains; a frozen one reads each chunk once, and the policy's loss stops there.
    policy_loss_weight: weight of the policy's cross-entropy against the chunks that hold the answer; its gradient
        reaches the encoder too. 0 leaves the policy to reinforcement alone, as in the paper.
    replay: text to train on besides, so that the decoder does not forget it; the paper has none.
    """

    stage: Literal["finetune"]
    form: Literal["mixed", "plain"] = "mixed"
    expand_fractions: list[Share] = [0.0, 0.1, 0.1, 0.2]
    plain_share: Share = 0.1
    labelled_share: Share = 0.2
    distillation_weight: Annotated[float, Field(ge=0)] = 2.0
    encoder_trains: bool = True
    policy_loss_weight: Annotated[float, Field(ge=0)] = 0.5
    questions: Questions | None = None
    replay: Replay | None = None


class PolicyRun(AskingRun):
    """Settings of the stages that train the policy alone.

    question_aware: whether the policy reads the question; the paper's does not.
    fresh: begin with new weights for the policy instead of those in the checkpoint.
    max_passages: most passages in a context, which has at least 2.
    questions: files to take questions from, in place of `tasks` and `rival_share`.
    """

    question_aware: bool = True
    fresh: bool = False
    max_passages: Annotated[int, Field(ge=2)] = 10
    questions: Questions | None = None


class Select(PolicyRun):
    """A stage beside the paper's: the policy learns from labels which chunks hold the answer, all else frozen."""

    stage: Literal["select"]


class Gains(PolicyRun):
    """A stage beside the paper's: the policy learns what expanding single chunks gains, with everything else frozen.

    num_candidates: chunks of each question that the decoder weighs.
    temperature: gains, in nats per token of the answer, are divided by it before their softmax.
    updates_per_batch: updates of the weights from the same gains.
    """

    stage: Literal["gains"]
    num_candidates: Annotated[int, Field(ge=2)] = 8
    temperature: PositiveFloat = 0.5
    updates_per_batch: PositiveInt = 2


class Policy(PolicyRun):
    """Paper stage 4: the expansion policy learns by GRPO, with everything else frozen.

    group_size: selections that are sampled and compared for each question.
    clip_range: a pick earns nothing further once its probability is beyond 1 ± this share of what it was.
    updates_per_batch: updates of the weights from the same selections.
    expand_fractions: shares of the chunks to select, though at least one chunk; each batch draws one.
    """

    stage: Literal["policy"]
    group_size: Annotated[int, Field(ge=2)] = 8
    clip_range: PositiveFloat = 0.2
    updates_per_batch: PositiveInt = 2
    expand_fractions: list[Share] = [0.1]


AnyRun = Annotated[
    Pretrain | Recover | Reconstruct | Continue | Finetune | Select | Gains | Policy, Field(discriminator="stage")
]
