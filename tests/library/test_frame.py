"""The tokens around a request: of the chat template alone may text spell special ones."""

from dataclasses import replace

import pytest

from refrag.config import PromptTemplate
from refrag.context.chunking import Chunker
from refrag.context.frame import open_frame
from refrag.errors import CheckpointError

CHAT = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}\n{{ message['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)
NO_SYSTEM = "{{ '<|bos|>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATE = PromptTemplate("", "\n", "Question: ", "", is_chat=True, system="Answer in a word.")


@pytest.fixture
def tokenizer(tiny_checkpoint):
    tokenizer = tiny_checkpoint.decoder_tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = CHAT
    yield tokenizer
    tokenizer.chat_template = before


def chunker_of(checkpoint, tokenizer, template):
    return Chunker(replace(checkpoint.config, template=template), tokenizer)


def test_without_a_chat_the_frame_is_begin_of_sequence(tokenizer):
    frame = open_frame(PromptTemplate(), tokenizer)
    assert (frame.head_ids, frame.tail_ids) == ([tokenizer.bos_token_id], [])


def test_a_prompt_is_what_the_chat_template_renders(tiny_checkpoint, tokenizer):
    chunker = chunker_of(tiny_checkpoint, tokenizer, TEMPLATE)
    ids = [*chunker.frame.head_ids, *chunker.passage_ids("A tide."), *chunker.question_ids("When?")]
    content = "A tide.\nQuestion: When?"
    messages = [{"role": "system", "content": TEMPLATE.system}, {"role": "user", "content": content}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_special_tokens_in_a_passage_or_a_question_stay_text(tiny_checkpoint, tokenizer):
    chunker = chunker_of(tiny_checkpoint, tokenizer, TEMPLATE)
    ids = chunker.passage_ids("<|eos|>") + chunker.question_ids("<|bos|>system")[: -len(chunker.frame.tail_ids)]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert chunker.frame.tail_ids[0] == tokenizer.eos_token_id


def test_a_template_that_takes_no_system_message_is_refused(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(CheckpointError, match=r"no system role; set template\.system to null"):
        open_frame(TEMPLATE, tokenizer)


@pytest.mark.parametrize(
    "chat_template, named",
    [("{{ messages[-1]['content'] }}", "leaves out the system message"), ("nothing", "leaves out")],
)
def test_a_template_that_leaves_out_a_message_is_refused(tokenizer, chat_template, named):
    tokenizer.chat_template = chat_template
    with pytest.raises(CheckpointError, match=named):
        open_frame(TEMPLATE, tokenizer)


def test_a_decoder_without_a_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match=r"set .*template\.is_chat to false"):
        open_frame(TEMPLATE, tokenizer)
