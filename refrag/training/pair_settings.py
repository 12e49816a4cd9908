"""Settings of a pair: a decoder and an encoder, each pretrained or of random weights, and what stands between them."""

from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from refrag.base_models.reference import BaseModel
from refrag.config import Pooling, PromptTemplate
from refrag.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class Adapter(Settings):
    """A low-rank adapter (LoRA) on every linear layer of a pretrained model, which itself stays as it is.

    rank: rank of its matrices.
    alpha: its output is scaled by alpha / rank.
    dropout: of its input, in training.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Share = 0.0


class Backbone(Settings):
    """A Hugging Face model: pretrained weights, or random weights of an architecture and a shape.

    pretrained: a folder, or a name on the Hugging Face hub; the checkpoint then holds the whole model. Or a base model
        as a mapping, such as {package: …, file: …, sha256: …}, {hub: …, revision: …} or {folder: …}: the checkpoint
        then names it, and holds no more than an adapter.
    architecture: a model type of transformers, such as "llama" or "bert".
    adapter: what trains of a base model that is named as a mapping; by default all of its weights.
    shape: values of the architecture's configuration. Beside `pretrained`, training ignores architecture and shape;
        `estimate` reads them, so that it downloads nothing.
    """

    pretrained: str | BaseModel | None = None
    architecture: str | None = None
    adapter: Adapter | None = None
    shape: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_given(self) -> "Backbone":
        if self.pretrained is None and self.architecture is None:
            raise ValueError("neither is given: name a `pretrained` model, or an `architecture` with its `shape`")
        return self

    @model_validator(mode="after")
    def _keeps_its_adapter(self) -> "Backbone":
        if self.adapter is not None and self.base is None:
            given = "not given" if self.pretrained is None else repr(self.pretrained)
            raise ValueError(
                f"adapter needs a base model that the checkpoint can name, but pretrained is {given}; give it as a "
                "mapping, such as {folder: …}, {hub: …} or {package: …, file: …, sha256: …}, or remove adapter"
            )
        return self

    @property
    def base(self) -> BaseModel | None:
        """Return the base model that a checkpoint names, independent of the working folder."""
        return self.pretrained.absolute() if isinstance(self.pretrained, BaseModel) else None


class Pair(Settings):
    """A decoder and an encoder, with the projector and the expansion policy between them.

    vocab_size: size of the tokenizer that is trained for a decoder of random weights; a pretrained decoder brings its
        own.
    tokenizer_documents: number of made-up worlds that this tokenizer is trained on, and as many documents of the
        standard library.
    chunk_size: k, the tokens of the decoder in one chunk, as the trained checkpoint is served.
    trained_chunk_sizes: every batch has chunks of one of these sizes, drawn at random.
    encoder_length: most tokens of the encoder in one chunk. By default the largest chunk size; for a pretrained
        encoder, which cuts text into tokens of its own, twice that and its special tokens.
    pooling: "mean" averages the encoder's token states into the chunk vector, "cls" takes the first state, "ordered"
        has a matrix for each place in a chunk and keeps the order of the tokens.
    vector_width: width of the chunk vectors, for ordered pooling; by default the encoder's.
    template: the text around passages and question, as `refrag.config.PromptTemplate` explains.
    policy_width: width of the policy's network.
    policy_num_heads: attention heads of the policy's network.
    max_prompt_slots: slots of the decoder's window, prompt and answer together.
    seed: decides the random weights, and what the tokenizer is trained on.
    """

    decoder: Backbone
    encoder: Backbone
    vocab_size: PositiveInt = 2048
    tokenizer_documents: PositiveInt = 800
    chunk_size: PositiveInt = 16
    trained_chunk_sizes: list[PositiveInt] = [16]
    encoder_length: PositiveInt | None = None
    template: PromptTemplate = PromptTemplate()
    pooling: Pooling = "mean"
    vector_width: PositiveInt | None = None
    policy_width: PositiveInt = 128
    policy_num_heads: PositiveInt = 4
    max_prompt_slots: PositiveInt = 4096
    seed: int = 0
