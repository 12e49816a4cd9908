"""Bodies of requests: what the endpoint takes, under the names of OpenAI's API and, beyond that, of vLLM's.

A field that the server has no use for is either allowed with the values that change nothing, or unknown and refused.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from refrag_client.openai.documents import Document, read_document

MAX_FIELDS = 100
# Texts to encode at a time, as OpenAI has it: each becomes a vector, however short it is.
MAX_TEXTS = 2048


def _only(*allowed: Any) -> AfterValidator:
    """Take the values that ask for what every answer is anyway, and null."""

    def check(value: Any) -> Any:
        # True equals 1, and no number stands for a switch.
        if value is None or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed
        ):
            return value
        advice = f", or send {' or '.join(map(repr, allowed))}" if allowed else ""
        raise ValueError(f"this is not to be had here; leave it out{advice}")

    return AfterValidator(check)


def _join_parts(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("content is neither text nor a list of text parts; give one of them")
    return "\n".join(_text_of_part(number, part) for number, part in enumerate(content))


def _text_of_part(number: int, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f'part {number} is of the type {kind}; only {{"type": "text", "text": "…"}} is read here')
    return str(part["text"])


def _one_text(value: Any) -> str:
    """Return a prompt: a string, or a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ValueError("a prompt is one text; token ids and several prompts are not read here")
    return value


def _texts(what: str) -> Callable[[Any], Any]:
    """Return a function that takes a string or a list of them."""

    def read(value: Any) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(each, str) for each in values):
            raise ValueError(f"{what} is text or a list of texts; give one of them")
        return values

    return read


def _stop_words(value: Any) -> list[str]:
    return [] if value is None or value == [] else _texts("stop")(value)


def _few_fields(value: Any) -> Any:
    """Refuse an object with more fields than any has here, before each of them is complained about."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"an object here has at most {MAX_FIELDS} fields, and this one {len(value)}; leave some out")
    return value


Documents = list[Annotated[Document, BeforeValidator(read_document)]]
# One complaint is told. Without this, a body of a few megabytes makes millions of them.
OneFault = FailFast()
Neutral = Annotated[Any, _only(0)]
Off = Annotated[Any, _only(False)]
# What callers name things by, which changes no answer.
Label = Annotated[str | None, Field(default=None)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    _check_number = model_validator(mode="before")(_few_fields)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: Off = None
    include_obfuscation: Off = None


class RefragOptions(Body):
    """Options that no other server has. return_chunks: tell which chunks were expanded."""

    expand_fraction: float | None = None
    max_prompt_slots: int | None = None
    policy: str | None = None
    sense_tokens: int | None = None
    min_confidence: float | None = None
    deadline_ms: int | None = None
    shadow_fraction: float | None = None
    whole_history: bool | None = None
    return_chunks: bool = False


class Message(Body):
    """One message; what only answers have is taken as well, since callers send those back, and is not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts)]
    name: Label = None
    refusal: Annotated[Any, _only()] = None
    audio: Annotated[Any, _only()] = None
    function_call: Annotated[Any, _only()] = None
    tool_calls: Annotated[Any, _only([])] = None
    annotations: list[Any] | None = None
    citations: list[Any] | None = None

    @model_validator(mode="after")
    def _check_role(self) -> "Message":
        if self.role != "assistant" and (self.annotations or self.citations):
            raise ValueError("only an assistant's message has annotations and citations; leave them out")
        return self


class GenerationBody(Body):
    """A body of either kind of generation."""

    model: str | None = None
    documents: Annotated[Documents | None, OneFault] = None
    collection: str | None = None
    num_passages: int | None = None
    filter: dict[str, Any] | None = None
    search_mode: str | None = None
    refrag: RefragOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**64)] = None
    stop: Annotated[list[str], BeforeValidator(_stop_words)] = Field(default_factory=list)
    repetition_penalty: float | None = None
    priority: int | None = None
    ignore_eos: bool | None = None
    user: Label = None
    n: Annotated[Any, _only(1)] = None
    best_of: Annotated[Any, _only(1)] = None
    echo: Off = None
    use_beam_search: Off = None
    presence_penalty: Neutral = None
    frequency_penalty: Neutral = None
    min_p: Neutral = None
    logit_bias: Annotated[Any, _only({})] = None


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), OneFault]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Neutral = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_few_fields)] = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    service_tier: Annotated[Any, _only("auto", "default")] = None
    store: Off = None
    modalities: Annotated[Any, _only(["text"])] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    parallel_tool_calls: bool | None = None


class CompletionBody(GenerationBody):
    """The body of /v1/completions. logprobs: 0 tells the chosen token's alone, and no others are to be had."""

    prompt: Annotated[str, BeforeValidator(_one_text)]
    logprobs: Neutral = None
    suffix: Annotated[Any, _only("")] = None


class EmbeddingBody(Body):
    """The body of /v1/embeddings."""

    model: str | None = None
    input: Annotated[list[str], BeforeValidator(_texts("input")), Field(max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Any, _only()] = None
    user: Label = None


class ChunksBody(Body):
    """The body of /v1/chunks."""

    model: str | None = None
    documents: Annotated[Documents, Field(max_length=MAX_TEXTS), OneFault]
