"""The tokens around a request: in a chat template alone may text spell special ones."""

import pytest
from tiny import CHAT, as_chat

from refrag.config import PromptTemplate
from refrag.context.frame import open_frame
from refrag.errors import CheckpointError

NO_SYSTEM = "{{ '<|bos|>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.fixture(scope="module")
def chat(tiny_checkpoint):
    return as_chat(tiny_checkpoint)


def refused(checkpoint, chat_template, named):
    with pytest.raises(CheckpointError, match=named):
        open_frame(CHAT, as_chat(checkpoint, chat_template).decoder_tokenizer)


def test_without_a_chat_the_frame_is_begin_of_sequence(tiny_checkpoint):
    tokenizer = tiny_checkpoint.decoder_tokenizer
    frame = open_frame(PromptTemplate(), tokenizer)
    assert (frame.head_ids, frame.tail_ids) == ([tokenizer.bos_token_id], [])


def test_a_prompt_is_what_the_chat_template_renders(chat):
    chunker, tokenizer = chat.chunker, chat.decoder_tokenizer
    ids = [*chunker.frame.head_ids, *chunker.passage_ids("A tide."), *chunker.question_ids("When?")]
    content = "A tide.\n\nQuestion: When?"
    messages = [{"role": "system", "content": CHAT.system}, {"role": "user", "content": content}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_special_tokens_in_a_passage_or_a_question_stay_text(chat):
    chunker, tokenizer = chat.chunker, chat.decoder_tokenizer
    ids = chunker.passage_ids("<|eos|>") + chunker.question_ids("<|bos|>system")[: -len(chunker.frame.tail_ids)]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert chunker.frame.tail_ids[0] == tokenizer.eos_token_id


def test_the_default_system_message_is_the_chat_templates(tiny_checkpoint):
    template = "{% if messages[0]['role'] != 'system' %}be kind {% endif %}{{ messages[-1]['content'] }}"
    tokenizer = as_chat(tiny_checkpoint, template).decoder_tokenizer
    frame = open_frame(PromptTemplate(is_chat=True), tokenizer)
    assert tokenizer.decode(frame.head_ids) == "be kind "


def test_a_chat_template_that_takes_no_system_message_is_refused(tiny_checkpoint):
    refused(tiny_checkpoint, NO_SYSTEM, r"no system role; set template\.system to null")


@pytest.mark.parametrize(
    "chat_template, named",
    [("{{ messages[-1]['content'] }}", "leaves out the system message"), ("{{ messages[0]['content'] }}", "user's")],
)
def test_a_chat_template_that_leaves_out_a_message_is_refused(tiny_checkpoint, chat_template, named):
    refused(tiny_checkpoint, chat_template, f"leaves out .*{named}" if named == "user's" else named)


def test_a_decoder_without_a_chat_template_is_refused(tiny_checkpoint):
    refused(tiny_checkpoint, None, r"set .*template\.is_chat to false")
