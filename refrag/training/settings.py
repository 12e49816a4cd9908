"""What a preset says: the pair to train, and the runs of its recipe, each one stage with its settings.

A preset is one YAML file; `refrag train run PRESET RUN` trains one of its runs. Unknown names and
wrong types are refused with the place in the file. Each default is written once, here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from refrag.config import Pooling
from refrag.data.sources import TextSource
from refrag.data.tasks import TASKS, Task
from refrag.errors import TrainingError
from refrag.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]

PRESETS = Path(__file__).parent / "presets"


class Backbone(Settings):
    """A Hugging Face model: `pretrained` (a folder or a hub name), or random weights of an architecture and shape.

    With both, the shape serves `estimate`, which downloads nothing.
    """

    pretrained: str | None = None
    architecture: str | None = None
    shape: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_given(self) -> "Backbone":
        if self.pretrained is None and self.architecture is None:
            raise ValueError("name a `pretrained` model, or an `architecture` with its `shape`")
        return self


class Pair(Settings):
    """Decoder, encoder, and what stands between them. Where no pretrained decoder brings a tokenizer, one of
    `vocab_size` is trained on `tokenizer_documents` worlds and as many documents of prose.
    """

    decoder: Backbone
    encoder: Backbone
    vocab_size: PositiveInt = 2048
    tokenizer_documents: PositiveInt = 800
    chunk_size: PositiveInt = 16
    trained_chunk_sizes: list[PositiveInt] = [16]
    encoder_length: PositiveInt | None = None
    pooling: Pooling = "mean"
    policy_width: PositiveInt = 128
    policy_num_heads: PositiveInt = 4
    max_prompt_slots: PositiveInt = 4096
    seed: int = 0


class Optimisation(Settings):
    """`final_fraction`: where the cosine ends, as a share of the peak learning rate. One step is
    `accumulation_steps` batches per process.
    """

    num_steps: PositiveInt
    learning_rate: PositiveFloat
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup_fraction: Share = 0.04
    final_fraction: Share = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_gradient_norm: PositiveFloat = 1.0
    accumulation_steps: PositiveInt = 1
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    snapshot_seconds: Annotated[float, Field(ge=0)] = 120.0
    seed: int = 0


class Curriculum(Settings):
    """Easy first, long last (paper §3 and its Table 8): in step j of `num_stages` the number of samples with
    `num_chunks[i]` chunks is a·ratios[i]^j, where every i gets the same number in all. One entry is no curriculum.

    stage_lengths: "equal" gives every stage as many steps, more of the easy ones than the paper has; "samples" as many
        as its samples take, as in the paper, where the last of nine stages is more than half of the training.
    """

    num_chunks: list[PositiveInt] = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    ratios: list[PositiveFloat] = [0.333, 0.895, 1.235, 1.744, 2.121, 2.613, 2.907, 2.907, 2.907]
    num_stages: PositiveInt = 9
    stage_lengths: Literal["equal", "samples"] = "equal"

    @model_validator(mode="after")
    def _fits(self) -> "Curriculum":
        if not self.num_chunks or len(self.ratios) < len(self.num_chunks):
            raise ValueError(f"{len(self.num_chunks)} numbers of chunks need as many ratios, not {len(self.ratios)}")
        return self


class Run(Settings):
    """What every run has: the run whose checkpoint it starts from (none: the untrained pair), and its length.

    tokens_per_step: tokens of one batch on one process, about. Of text, all that encoder and decoder read; of
        questions, contexts and questions once, though in fine-tuning most questions are shown their context
        separately; of selections, the decoder's slots.
    """

    start: str | None = None
    optimisation: Optimisation
    tokens_per_step: PositiveInt = 4096


class AskingRun(Run):
    """What runs over questions have: tasks are those of `refrag/data/tasks.py`.

    rival_share: of the contexts, that ask for single facts among entities of one kind, told apart by their names alone.
    row_slots: short examples share rows of this many slots, and do not see each other; None: a row for each.
    """

    tasks: Annotated[list[Task], Field(min_length=1)] = list(TASKS)
    max_passages: PositiveInt = 10
    rival_share: Share = 0.3
    row_slots: PositiveInt | None = None


class Pretrain(AskingRun):
    """The decoder alone over plain text and plain question answering; only where there is no pretrained one.

    recital_share: of the run, at its start, spent on repeating random strings of tokens.
    text_share: of the batches after it that are text; the others are questions.
    """

    stage: Literal["pretrain"]
    sources: list[TextSource]
    window_tokens: PositiveInt = 256
    recital_share: Share = 0.1
    text_share: Share = 0.3


class Reconstruct(Run):
    """Paper stage 1: decoder frozen, [e_1..e_L] then their tokens."""

    stage: Literal["reconstruct"]
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum()


class Continue(Run):
    """Paper stages 2 and 3: chunk embeddings of a text, then its continuation; everything trains.

    expand_fractions: one is drawn per batch; above 0 that share of the chunks, picked at random, stays tokens.
    form: "plain" shows the context as tokens, which is the same training for the baseline.
    """

    stage: Literal["continue"]
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum()
    continuation_tokens: PositiveInt = 64
    expand_fractions: list[Share] = [0.0]
    form: Literal["mixed", "plain"] = "mixed"


class Replay(Settings):
    """Text that goes with the questions of fine-tuning, compressed and continued as before it.

    share: of the batches that have text.
    """

    share: Share
    sources: list[TextSource]
    curriculum: Curriculum = Curriculum(num_chunks=[16], ratios=[1.0])
    continuation_tokens: PositiveInt = 64


class Finetune(AskingRun):
    """Paper stage 5: question answering over retrieved passages, only answers in the loss.

    form: "plain" gives the baseline the same questions over the same passages as plain text.
    plain_share: mixed form only, the share of batches with every chunk expanded, so that this keeps working.
    policy_loss_weight: of the policy's cross-entropy against the chunks that hold the answer, whose gradient
        reaches the encoder too; 0 leaves the policy to reinforcement alone, as in the paper.
    replay: text besides, so that it is not forgotten; none in the paper.
    """

    stage: Literal["finetune"]
    form: Literal["mixed", "plain"] = "mixed"
    expand_fractions: list[Share] = [0.0, 0.1, 0.1, 0.2]
    plain_share: Share = 0.1
    policy_loss_weight: Annotated[float, Field(ge=0)] = 0.5
    replay: Replay | None = None


class Policy(AskingRun):
    """Paper stage 4: the expansion policy by GRPO, everything else frozen.

    fresh: begin with new weights instead of those in the checkpoint.
    """

    stage: Literal["policy"]
    question_aware: bool = True
    fresh: bool = False
    group_size: Annotated[int, Field(ge=2)] = 8
    clip_range: PositiveFloat = 0.2
    updates_per_batch: PositiveInt = 2
    expand_fractions: list[Share] = [0.1]
    max_passages: Annotated[int, Field(ge=2)] = 10


AnyRun = Annotated[Pretrain | Reconstruct | Continue | Finetune | Policy, Field(discriminator="stage")]


class Preset(Settings):
    """`result`: the run whose checkpoint the recipe is for."""

    description: str
    pair: Pair
    runs: dict[str, AnyRun]
    result: str

    @model_validator(mode="after")
    def _runs_exist(self) -> "Preset":
        seen: list[str] = []
        for name, run in self.runs.items():
            if run.start is not None and run.start not in seen:
                raise ValueError(f"run {name!r} starts from {run.start!r}; runs above it are {seen}")
            seen.append(name)
        if self.result not in seen:
            raise ValueError(f"result is {self.result!r}; the runs are {seen}")
        return self


def load_preset(name: str, overrides: list[str] | None = None) -> Preset:
    """A preset by name or path, with `a.b.c=value` overrides, or TrainingError that says where it does not fit."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
        raise TrainingError(f"no preset {name!r}; known are {known}, or give the path of a YAML file")
    values = _unshared(_read_yaml(path.read_text(), str(path)))
    if not isinstance(values, dict):
        raise TrainingError(f"{path} holds a {type(values).__name__}; a preset is names with their values")
    for override in overrides or []:
        _apply(override, values)
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{_place(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise TrainingError(f"{path} does not fit: {faults}") from None


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"{source} is not YAML: {error}") from None


def _unshared(value: Any) -> Any:
    """A copy in which nothing stands in two places: what a YAML alias repeats may be overridden in one of them."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _apply(override: str, values: dict[str, Any]) -> None:
    """Set one value in place; what it replaces need not be there, so that defaults can be overridden."""
    place, equals, text = override.partition("=")
    *path, last = place.split(".")
    if not equals or not last:
        raise TrainingError(f"override is {override!r}; the form is runs.finetune.optimisation.num_steps=100")
    inner: Any = values
    for key in path:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[_number(key, inner, override)]
    if isinstance(inner, dict):
        inner[last] = _read_yaml(text, f"override {override!r}")
    else:
        inner[_number(last, inner, override)] = _read_yaml(text, f"override {override!r}")


def _number(key: str, values: Any, override: str) -> int:
    """The place of an entry in a list, counted from 0: runs.continue.sources.0.path."""
    if not isinstance(values, list):
        raise TrainingError(f"override is {override!r}; there is a single value where it looks for {key!r}")
    if not key.isdecimal() or int(key) >= len(values):
        raise TrainingError(f"override is {override!r}; {key!r} is to be one of {len(values)} entries, from 0 on")
    return int(key)


def _place(location: tuple[int | str, ...]) -> str:
    """Where in the file a fault is; pydantic puts the stage behind a run's name, which the file has not."""
    if location[:1] == ("runs",):
        location = (*location[:2], *location[3:])
    return ".".join(map(str, location)) or "the whole"
