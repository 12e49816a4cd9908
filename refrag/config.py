"""A checkpoint's settings (refrag.json), on which all models of the ensemble must agree."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from refrag.errors import CheckpointError
from refrag.spelling import suggestion

if TYPE_CHECKING:
    from refrag.base_models.reference import BaseModel

Pooling = Literal["mean", "cls", "ordered"]
T = TypeVar("T")

CONFIG_NAME = "refrag.json"
# Name of the policy whose network a checkpoint may hold.
LEARNED_POLICY = "learned"
# The base model of decoder/, of encoder/.
BASES = ("decoder_base", "encoder_base")


@dataclass(frozen=True)
class PromptTemplate:
    """The text around passages and question. It belongs to the checkpoint because the weights are trained with it.

    Each passage is tokenised by itself between `passage_prefix` and `passage_suffix`. Both are part of its chunks, so
    that a compressed passage costs no slot for a separator.

    is_chat: the decoder's own chat template stands around all of it, as a user's message.
    system: the system message of a chat; None leaves it to the chat template.
    """

    # Presets hold one too, and refuse unknown names there.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    passage_prefix: str = " "
    passage_suffix: str = "\n"
    question_prefix: str = " Question: "
    answer_prefix: str = "\n Answer:"
    is_chat: bool = False
    system: str | None = None


@dataclass(frozen=True)
class RefragConfig:
    """The contents of `refrag.json`. Raises CheckpointError for values that are not allowed.

    chunk_size: k, the decoder tokens per chunk that the server uses.
    trained_chunk_sizes: every k that the encoder and the decoder were trained with.
    pooling: how the encoder's token states become one chunk vector; `refrag/model/encoder.py` explains each way.
    vector_width: width of the chunk vectors; None if it is the encoder's. Only ordered pooling can have another.
    question_aware: true if the learned policy reads the question's chunk vectors besides the context's.
    policy_confidence: the learned policy stops short of its budget once the chunks that it selected hold this share of
        its probability; 1 always spends the budget, as the paper does.
    policy_num_heads: attention heads of the learned policy, which its weights alone do not tell.
    policy: the policy that chooses the chunks to expand if a request names none.
    expand_fraction: share of the chunks to expand if a request gives none.
    template: the text around passages and question.
    max_prompt_slots: slots of the decoder's window, prompt and answer together.
    encoder_length: encoder tokens per chunk; more than k only for an encoder with its own tokenizer.
    decoder_base, encoder_base: the pretrained model of which `decoder/` or `encoder/` holds only the difference; None
        if it holds the whole model.
    provenance: how the weights were made; never read by code.
    """

    chunk_size: int
    trained_chunk_sizes: list[int]
    max_prompt_slots: int
    encoder_length: int
    pooling: Pooling = "mean"
    vector_width: int | None = None
    question_aware: bool = True
    policy_confidence: float = 0.95
    policy_num_heads: int = 4
    policy: str = LEARNED_POLICY
    expand_fraction: float = 0.1
    template: PromptTemplate = field(default_factory=PromptTemplate)
    decoder_base: "BaseModel | None" = None
    encoder_base: "BaseModel | None" = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.chunk_size >= 1, f"chunk_size is {self.chunk_size}; it must be at least 1")
        _require(
            self.encoder_length >= self.chunk_size,
            f"encoder_length is {self.encoder_length}; it must be at least chunk_size, which is {self.chunk_size}",
        )
        _require(self.max_prompt_slots >= 1, f"max_prompt_slots is {self.max_prompt_slots}; it must be at least 1")
        _require(
            self.pooling in get_args(Pooling), f"pooling is {self.pooling!r}; allowed: {', '.join(get_args(Pooling))}"
        )
        _require(
            self.vector_width is None or (self.pooling == "ordered" and self.vector_width >= 1),
            f"vector_width is {self.vector_width} and pooling {self.pooling!r}; leave it out, or set a positive width "
            "and pooling 'ordered'",
        )
        _require(
            0 < self.policy_confidence <= 1, f"policy_confidence is {self.policy_confidence}; allowed: above 0, up to 1"
        )
        _require(0 <= self.expand_fraction <= 1, f"expand_fraction is {self.expand_fraction}; allowed: 0 to 1")

    def save(self, directory: Path) -> None:
        values = asdict(self)
        for name in BASES:
            reference = values.pop(name)
            values |= {} if reference is None else {name: reference.to_json()}
        (directory / CONFIG_NAME).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "RefragConfig":
        """Read `refrag.json` in `directory`, or raise CheckpointError that names the file and the fault."""
        path = directory / CONFIG_NAME
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; {directory} is not a REFRAG checkpoint") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} holds a {type(values).__name__}; it must hold one JSON object")
        template = _from_dict(PromptTemplate, values.pop("template", {}), path)
        return _from_dict(cls, {**values, **_bases(values, path), "template": template}, path)


def _bases(values: dict[str, Any], source: Path) -> dict[str, "BaseModel"]:
    named = {name: values[name] for name in BASES if values.get(name) is not None}
    if not named:
        return {}
    # Loaded here, because served checkpoints are whole and need no pydantic.
    from refrag.base_models.reference import parse_reference

    return {name: parse_reference(reference, f"{name} of {source}") for name, reference in named.items()}


def _from_dict(cls: type[T], values: dict[str, Any], source: Path) -> T:
    known = sorted(f.name for f in fields(cls))  # type: ignore[arg-type]
    if unknown := sorted(set(values).difference(known)):
        near = suggestion(unknown, known)
        raise CheckpointError(f"{source} has unknown settings {unknown}; known are {known}; remove the others{near}")
    try:
        return cls(**values)
    except TypeError as error:
        raise CheckpointError(f"{source} does not fit: {error}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckpointError(message)
