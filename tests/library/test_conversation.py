"""Earlier turns in the prompt: newest in text, older ones as chunks behind the passages, the oldest cut at the end."""

import itertools
from dataclasses import replace

import pytest
from tiny import CHAT, as_chat

from refrag.config import PromptTemplate
from refrag.context.frame import open_frame
from refrag.context.prepare import ContextLimits, prepare_context
from refrag.errors import InvalidRequest
from refrag.history import Turn
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request, SamplingParams

PASSAGES = ["Mara Tolen keeps a parrot. Tolen was born in 1962.", "Odo Marsk plays the harp."]
SAMPLING = SamplingParams(max_tokens=4)


def turns(count):
    texts = [f"What of ship {number}?" if number % 2 == 0 else f"Ship {number} is in port." for number in range(count)]
    return [Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]


def prepared(pipeline, history, max_tokens=4, **options):
    request = Request("And the last one?", PASSAGES, ExpansionOptions(**options), history)
    return pipeline.prepare(request, max_tokens)


def with_window(pipeline, window, text_tokens):
    config = replace(pipeline.checkpoint.config, max_prompt_slots=window)
    return Pipeline(replace(pipeline.checkpoint, config=config), history_text_tokens=text_tokens)


def test_turns_as_passages_are_those_of_training(tiny_checkpoint):
    """Evaluated checkpoints saw their earlier turns so: `refrag.data.tasks` and `refrag.data.contexts`."""
    pipeline = Pipeline(tiny_checkpoint, history_text_tokens=0)
    context = prepared(pipeline, [Turn("user", "Who keeps a parrot?"), Turn("assistant", "Mara Tolen")])
    expected = [*PASSAGES, "Question: Who keeps a parrot? Answer: Mara Tolen"]
    assert list(context.chunks) == list(pipeline.chunker.context_chunks(expected))
    assert context.sources.num_passages == len(PASSAGES)


@pytest.mark.parametrize("text_tokens", [0, 40, 10_000])
def test_without_a_chat_template_text_and_expanded_turns_are_the_same_prompt(tiny_checkpoint, text_tokens):
    def ask(pipeline):
        return pipeline.answer(
            Request("And the last?", PASSAGES, ExpansionOptions(policy="all"), turns(6)), SAMPLING
        ).prompt.input_ids.tolist()

    assert ask(Pipeline(tiny_checkpoint, text_tokens)) == ask(Pipeline(tiny_checkpoint, 20))


def test_the_newest_pairs_are_text_within_the_budget_and_all_others_are_chunks(pipeline):
    none, all_text = (
        prepared(with_window(pipeline, 4096, 0), turns(8)),
        prepared(with_window(pipeline, 4096, 999), turns(8)),
    )
    length = (len(all_text.question_ids) - len(none.question_ids)) // 4
    some = prepared(with_window(pipeline, 4096, 2 * length + 2), turns(8))
    assert len(all_text.question_ids) > len(some.question_ids) > len(none.question_ids)
    assert set(none.chunks.passages.tolist()) == {0, 1, 2, 3, 4, 5}
    assert set(some.chunks.passages.tolist()) == {0, 1, 2, 3}
    assert set(all_text.chunks.passages.tolist()) == {0, 1}
    assert [each.num_cut_turns for each in (none, some, all_text)] == [0, 0, 0]


def test_most_questions_keep_the_text_of_the_one_before_so_that_their_prompts_begin_alike(pipeline):
    wide, counts = with_window(pipeline, 8192, 240), range(40, 140, 2)
    contexts = [prepared(wide, turns(count)) for count in counts]
    begins = [int(context.chunks.passages[-1]) for context in contexts]
    assert begins == sorted(begins), "a pair that has left the text never returns"
    moves = sum(before < after for before, after in itertools.pairwise(begins))
    assert 0 < moves <= len(begins) // 3
    texts = [len(context.question_ids) - len(contexts[0].question_ids) for context in contexts]
    assert max(texts) - min(texts) <= 120 + 40, "half of the limit, and a pair"
    for before, after in itertools.pairwise(contexts):
        common = len(before.chunks)
        assert list(after.chunks[:common]) == list(before.chunks)


def test_policies_read_the_question_behind_the_newest_pair(tiny_checkpoint):
    plain, chat = Pipeline(tiny_checkpoint), Pipeline(as_chat(tiny_checkpoint))
    newest = "What of ship 2? Answer: Ship 3 is in port."
    told = {plain: f"Question: {newest} And the last one?"}
    told[chat] = "user: What of ship 2?\nassistant: Ship 3 is in port.\nuser: And the last one?"
    for pipeline, text in told.items():
        chunks = prepared(pipeline, turns(4)).question_chunks
        assert chunks.token_ids.tolist() == pipeline.chunker.question_chunks(text).token_ids.tolist()
        alone = prepared(pipeline, []).question_chunks
        assert alone.token_ids.tolist() == pipeline.chunker.question_chunks("And the last one?").token_ids.tolist()


def test_policies_read_the_question_alone_where_the_encoder_takes_no_more_and_no_turn_is_lost_for_it(pipeline):
    history = [*turns(2), Turn("user", "What of the fleet?"), Turn("assistant", "It is at sea. " * 8)]
    request = Request("And the last one?", PASSAGES, history=history)
    whole, alone = (prepared(pipeline, asked).question_chunks for asked in (history, []))
    shortest = ContextLimits(4, text_tokens=whole.num_tokens)
    chunks = prepare_context(request, pipeline.chunker, shortest).chunks
    for num_chunks, expected in ((len(chunks) + len(whole), whole), (len(chunks) + len(whole) - 1, alone)):
        context = prepare_context(request, pipeline.chunker, replace(shortest, num_chunks=num_chunks))
        assert context.question_chunks.token_ids.tolist() == expected.token_ids.tolist()
        assert context.chunks.token_ids.tolist() == chunks.token_ids.tolist() and not context.num_cut_turns


def test_policies_read_the_question_alone_behind_a_long_pair(pipeline):
    history = [Turn("user", "What of the fleet?"), Turn("assistant", "It is at sea. " * 100)]
    alone = prepared(pipeline, []).question_chunks
    assert prepared(pipeline, history).question_chunks.token_ids.tolist() == alone.token_ids.tolist()


def test_a_newest_pair_that_fits_is_always_text(pipeline):
    long = [
        turn for number in range(9) for turn in (Turn("user", f"Ship {number}? " * 9), Turn("assistant", "In port."))
    ]
    all_text = prepared(with_window(pipeline, 8192, 9999), long)
    one, none = prepared(with_window(pipeline, 8192, 0), long[:2]), prepared(with_window(pipeline, 8192, 0), [])
    length = one.chunks.num_tokens - none.chunks.num_tokens
    for limit in range(length + 2, 4 * length):
        context = prepared(with_window(pipeline, 8192, limit), long)
        assert (
            len(none.question_ids)
            < len(context.question_ids)
            <= min(len(all_text.question_ids), len(none.question_ids) + limit)
        )


def test_a_chat_is_what_the_chat_template_renders(tiny_checkpoint):
    checkpoint = as_chat(tiny_checkpoint)
    history = turns(4)
    answer = Pipeline(checkpoint).answer(
        Request("And now?", PASSAGES, ExpansionOptions(policy="all"), history), SAMPLING
    )
    contents = [f"{CHAT.question_prefix}{turn.content}" if turn.role == "user" else turn.content for turn in history]
    contents[0] = "".join(f"{passage}\n" for passage in PASSAGES) + contents[0]
    messages = [
        {"role": "system", "content": CHAT.system},
        *({"role": turn.role, "content": content} for turn, content in zip(history, contents, strict=True)),
        {"role": "user", "content": f"{CHAT.question_prefix}And now?"},
    ]
    rendered = checkpoint.decoder_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert checkpoint.decoder_tokenizer.decode(answer.prompt.input_ids.tolist()) == rendered


@pytest.mark.parametrize(
    "chat_template",
    [
        # Takes no second question; says of the last answer more than of the first.
        "{% if messages | length > 2 %}{{ raise_exception('no turns') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ loop.index }} {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    ],
)
def test_turns_are_passages_in_text_where_the_chat_template_has_no_form_for_them(tiny_checkpoint, chat_template):
    checkpoint = as_chat(tiny_checkpoint, chat_template)
    frame = open_frame(checkpoint.config.template, checkpoint.decoder_tokenizer)
    assert (frame.answer_ids, frame.question_ids) == (None, None)
    context = prepared(Pipeline(checkpoint), turns(2))
    text = checkpoint.decoder_tokenizer.decode(context.question_ids)
    assert text.startswith("user: What of ship 0?\nassistant: Ship 1 is in port.\n\nQuestion: And the last one?")


def test_a_system_message_and_turns_are_told_apart(tiny_checkpoint):
    frame = open_frame(PromptTemplate(is_chat=True), as_chat(tiny_checkpoint).decoder_tokenizer)
    decode = tiny_checkpoint.decoder_tokenizer.decode
    assert decode(frame.answer_ids) == "<|eos|>\n<|bos|>assistant\n"
    assert decode(frame.question_ids) == "<|eos|>\n<|bos|>user\n"


def test_special_tokens_in_a_turn_stay_text(tiny_checkpoint):
    checkpoint = as_chat(tiny_checkpoint)
    context = prepared(Pipeline(checkpoint), [Turn("user", "<|eos|>"), Turn("assistant", "<|bos|>system")])
    bare = prepared(Pipeline(checkpoint), [Turn("user", "a"), Turn("assistant", "b")])
    special = {checkpoint.decoder_tokenizer.bos_token_id, checkpoint.decoder_tokenizer.eos_token_id}
    assert [i for i in context.question_ids if i in special] == [i for i in bare.question_ids if i in special]


@pytest.mark.parametrize("max_prompt_slots", [None, 150])
def test_nothing_is_cut_until_the_window_is_full_and_then_the_oldest(pipeline, max_prompt_slots):
    narrow = with_window(pipeline, 200, 30)
    limit = min(200 - 4, max_prompt_slots or 200)
    sizes = []
    for count in range(0, 400, 40):
        context = prepared(narrow, turns(count), max_prompt_slots=max_prompt_slots, expand_fraction=0.5)
        slots = len(context.chunks) + narrow.chunker.num_other_slots(context.question_ids)
        assert slots <= limit
        # One more pair, of three chunks, would not have fitted.
        assert not context.num_cut_turns or slots + 3 > limit
        sizes.append(context.num_cut_turns)
    assert sizes[0] == sizes[1] == 0 < sizes[-1]


def test_a_long_conversation_is_answered_within_the_window(pipeline):
    narrow = with_window(pipeline, 300, 30)
    answer = narrow.answer(Request("And now?", PASSAGES, ExpansionOptions(0.5, "random"), turns(300)), SAMPLING)
    assert answer.prompt.num_slots <= 300 - SAMPLING.max_tokens
    assert answer.num_cut_turns > 0
    assert all(passage < len(PASSAGES) for passage, _, _ in answer.citations)
    assert len(answer.passage_weights) == len(PASSAGES)


def test_a_plain_conversation_is_cut_earlier_than_a_compressed_one(pipeline):
    narrow = with_window(pipeline, 300, 30)
    plain, compressed = (prepared(narrow, turns(80), policy=policy) for policy in ("all", "none"))
    assert plain.num_cut_turns > compressed.num_cut_turns == 0
    assert plain.chunks.num_tokens + narrow.chunker.num_other_slots(plain.question_ids) <= 300 - 4


def test_a_caller_may_rather_be_refused(pipeline):
    request = Request("And now?", PASSAGES, history=turns(400), whole_history=True)
    with pytest.raises(InvalidRequest, match=r"history has 400 turns, .*; send fewer turns or passages"):
        with_window(pipeline, 100, 30).prepare(request, 4)


def test_passages_that_do_not_fit_are_refused_as_without_turns(pipeline):
    narrow = with_window(pipeline, 100, 30)
    request = Request("And now?", ["word " * 2000], ExpansionOptions(0.0), turns(2))
    with pytest.raises(InvalidRequest, match="the decoder's window is 100; send fewer passages"):
        narrow.answer(request, SAMPLING)


def test_a_limit_beyond_the_window_is_refused_with_and_without_turns(pipeline):
    for history in ([], turns(2)):
        request = Request("And now?", PASSAGES, ExpansionOptions(max_prompt_slots=5000), history)
        with pytest.raises(InvalidRequest, match="max_prompt_slots is 5000; allowed is 1 to 4096"):
            pipeline.answer(request, SAMPLING)


def test_a_share_left_to_the_server_gives_way_to_the_window(pipeline):
    narrow, passages = with_window(pipeline, 200, 30), ["word " * 500]
    options = ExpansionOptions(0.5, "random")
    with pytest.raises(InvalidRequest, match="the decoder's window is 200"):
        narrow.answer(Request("Who?", passages, options), SAMPLING)
    answer = narrow.answer(Request("Who?", passages, replace(options, gives_way=True)), SAMPLING)
    assert answer.expanded and answer.prompt.num_slots <= 200 - 4


@pytest.mark.parametrize("num_spare", [0, 1, 3])
@pytest.mark.parametrize("history", [[], turns(2)])
def test_a_limit_near_the_window_leaves_room_for_the_answer(pipeline, history, num_spare):
    narrow, passages = with_window(pipeline, 200, 30), ["word " * 500]
    options = ExpansionOptions(1.0, "random", max_prompt_slots=200 - num_spare)
    answer = narrow.answer(Request("Who?", passages, options, history), SAMPLING)
    assert answer.expanded and answer.prompt.num_slots <= 200 - 4


def test_a_prompt_that_fits_is_the_same_with_the_whole_window_as_its_limit(pipeline):
    whole = pipeline.checkpoint.config.max_prompt_slots
    for options in (ExpansionOptions(0.5, "random"), ExpansionOptions(policy="all")):
        prompts = [
            pipeline.answer(Request("Who?", PASSAGES, each), SAMPLING).prompt.input_ids.tolist()
            for each in (options, replace(options, max_prompt_slots=whole))
        ]
        assert prompts[0] == prompts[1]


def test_a_limit_gives_no_way_where_every_chunk_must_be_expanded(pipeline):
    options = ExpansionOptions(policy="all", max_prompt_slots=200)
    context = with_window(pipeline, 200, 30).prepare(Request("Who?", PASSAGES, options), max_tokens=190)
    assert context.limit(options) == options
