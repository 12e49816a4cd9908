"""Reads off the frame of every prompt: the tokens in front of the context, and those behind the question.

    plain      ^ passages question answer_prefix                              ^ begin-of-sequence, if there is one
    chat       <|im_start|>system … user\n passages question answer_prefix <|im_end|> … assistant\n

For a chat decoder both come from its own chat template, the only place where text may spell special tokens. So do the
tokens between the turns of a conversation: those in front of an answer, and those behind it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refrag.config import PromptTemplate
from refrag.errors import CheckpointError
from refrag.history import ROLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Stands for passages and question while the chat template is rendered. Templates strip white space, so it has none.
CONTENT = "REFRAG-CONTENT"
# Stand for the turns of a conversation, which has two pairs so that what stands between them can be compared.
TURNS = tuple(f"REFRAG-TURN-{number}" for number in "ABCD")


@dataclass(frozen=True)
class Frame:
    """Tokens around what a request brings.

    bos_ids: begin-of-sequence token, if there is one; all that stands before a text without a question.
    head_ids: before the passages. tail_ids: after the question.
    answer_ids, question_ids: in front of the answer of an earlier turn, and behind it, where the next question begins;
        None where no chat template tells both.
    """

    bos_ids: list[int]
    head_ids: list[int]
    tail_ids: list[int]
    answer_ids: list[int] | None
    question_ids: list[int] | None


def open_frame(template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast") -> Frame:
    """Return the frame of the template's prompts; raise CheckpointError for a chat template that gives none."""
    bos_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if not template.is_chat:
        return Frame(bos_ids, head_ids=bos_ids, tail_ids=[], answer_ids=None, question_ids=None)
    head, found, tail = _render(template, tokenizer, [CONTENT]).partition(CONTENT)
    if not found:
        raise CheckpointError(
            "the decoder's chat template leaves out the user's message; set template.is_chat to false"
        )
    between = _between_turns(template, tokenizer, head, tail)
    answer_ids, question_ids = (None if text is None else _with_special_tokens(tokenizer, text) for text in between)
    head_ids, tail_ids = (_with_special_tokens(tokenizer, text) for text in (head, tail))
    return Frame(bos_ids, head_ids, tail_ids, answer_ids, question_ids)


def _between_turns(
    template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast", head: str, tail: str
) -> tuple[str, str] | tuple[None, None]:
    """Return what the chat template puts in front of an earlier answer, and behind it.

    None if it takes no earlier turns, or treats some of them in another way than others.
    """
    try:
        rendered = _render(template, tokenizer, [*TURNS, CONTENT])
    except CheckpointError:
        return None, None
    parts = re.split("|".join([*TURNS, CONTENT]), rendered)
    if len(parts) != len(TURNS) + 2 or parts[1:3] != parts[3:5] or (parts[0], parts[-1]) != (head, tail):
        return None, None
    return parts[1], parts[2]


def _render(template: PromptTemplate, tokenizer: "PreTrainedTokenizerFast", turns: Sequence[str]) -> str:
    """Return the chat of these turns, the user's first, as the chat template has it."""
    # Comes with transformers, which alone renders chat templates.
    from jinja2 import TemplateError

    system = [] if template.system is None else [{"role": "system", "content": template.system}]
    spoken = [{"role": ROLES[number % 2], "content": turn} for number, turn in enumerate(turns)]
    messages = [*system, *spoken]
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
