"""Reads off the frame of every prompt: the tokens in front of the context, and those behind the question.

    plain      ^ passages question answer_prefix                              ^ begin-of-sequence, if there is one
    chat       <|im_start|>system … user\n passages question answer_prefix <|im_end|> … assistant\n

For a chat decoder both come from its own chat template, the only place where text may spell special tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refrag.config import PromptTemplate
from refrag.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Stands for passages and question while the chat template is rendered. Templates strip white space, so it has none.
CONTENT = "REFRAG-CONTENT"


@dataclass(frozen=True)
class Frame:
    """Tokens around what a request brings.

    bos_ids: begin-of-sequence token, if there is one; all that stands before a text without a question.
    head_ids: before the passages. tail_ids: after the question.
    """

    bos_ids: list[int]
    head_ids: list[int]
    tail_ids: list[int]


def open_frame(template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast") -> Frame:
    """Return the frame of the template's prompts; raise CheckpointError for a chat template that gives none."""
    bos_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if not template.is_chat:
        return Frame(bos_ids, head_ids=bos_ids, tail_ids=[])
    head, found, tail = _render(template, tokenizer).partition(CONTENT)
    if not found:
        raise CheckpointError(
            "the decoder's chat template leaves out the user's message; set template.is_chat to false"
        )
    return Frame(bos_ids, _with_special_tokens(tokenizer, head), _with_special_tokens(tokenizer, tail))


def _render(template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast") -> str:
    # Comes with transformers, which alone renders chat templates.
    from jinja2 import TemplateError

    system = [] if template.system is None else [{"role": "system", "content": template.system}]
    messages = [*system, {"role": "user", "content": CONTENT}]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (ValueError, TemplateError) as error:
        given = "a user message alone" if template.system is None else "a system message and a user message"
        raise CheckpointError(
            f"the decoder's chat template does not take {given}: {error}; set template.system to null, so that it is "
            "given none, or template.is_chat to false"
        ) from None
    assert isinstance(rendered, str)
    if template.system is not None and template.system not in rendered:
        raise CheckpointError(
            "the decoder's chat template leaves out the system message; set template.system to null and put its text "
            "into template.question_prefix"
        )
    return rendered


def _with_special_tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=False).input_ids
    return ids
