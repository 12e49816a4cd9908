from dataclasses import replace

import pytest
import torch
from tiny import CHAT, as_chat

from refrag.context.chunking import NULL_QUESTION
from refrag.errors import InvalidRequest
from refrag.pipeline import Pipeline, encode_chunks
from refrag.request import ExpansionOptions, Request, SamplingParams

PASSAGES = ["Mara Tolen keeps a parrot. Tolen was born in 1962 and likes rain.", "Odo Marsk plays the harp."]
SAMPLING = SamplingParams(max_tokens=12)


def ask(pipeline, **options):
    return pipeline.answer(Request("What does Mara Tolen keep?", PASSAGES, ExpansionOptions(**options)), SAMPLING)


def test_expanding_everything_equals_the_plain_decoder_on_the_plain_text(pipeline, tiny_checkpoint):
    tokenizer, template = tiny_checkpoint.decoder_tokenizer, tiny_checkpoint.config.template
    context = "".join(template.passage_prefix + passage + template.passage_suffix for passage in PASSAGES)
    text = f"{context}{template.question_prefix}What does Mara Tolen keep?{template.answer_prefix}"
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    plain = tiny_checkpoint.decoder.backbone.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    eos_ids = tiny_checkpoint.decoder.eos_ids
    assert ask(pipeline, expand_fraction=1).token_ids == [
        i for i in plain[0, ids.shape[1] :].tolist() if i not in eos_ids
    ]


def test_expanding_everything_equals_generate_on_the_chat_templates_text(tiny_checkpoint):
    checkpoint = as_chat(tiny_checkpoint)
    tokenizer, decoder = checkpoint.decoder_tokenizer, checkpoint.decoder
    content = "".join(f"{passage}\n" for passage in PASSAGES) + "\nQuestion: What does Mara Tolen keep?"
    messages = [{"role": "system", "content": CHAT.system}, {"role": "user", "content": content}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    plain = decoder.backbone.generate(**inputs, max_new_tokens=12, do_sample=False)
    generated = plain[0, inputs.input_ids.shape[1] :].tolist()
    answer = ask(Pipeline(checkpoint), expand_fraction=1)
    assert answer.prompt.input_ids.tolist() == inputs.input_ids[0].tolist()
    assert answer.token_ids == [i for i in generated if i not in decoder.eos_ids]


def test_the_policy_all_is_expanding_everything(pipeline):
    assert ask(pipeline, policy="all").token_ids == ask(pipeline, expand_fraction=1).token_ids


def test_expanding_nothing_takes_a_slot_for_each_chunk(pipeline):
    answer = ask(pipeline, expand_fraction=0)
    assert answer.expanded == []
    question = pipeline.chunker.question_ids("What does Mara Tolen keep?")
    assert answer.prompt.num_slots == 1 + len(pipeline.chunker.context_chunks(PASSAGES)) + len(question)


def test_a_limit_of_slots_is_made_use_of_and_kept(pipeline):
    compressed, plain = ask(pipeline, expand_fraction=0), ask(pipeline, expand_fraction=1)
    limit = (compressed.prompt.num_slots + plain.prompt.num_slots) // 2
    answer = ask(pipeline, expand_fraction=1.0, max_prompt_slots=limit)
    assert limit - pipeline.checkpoint.config.chunk_size < answer.prompt.num_slots <= limit


def test_who_wants_all_of_the_weight_reads_all_that_there_is_room_for(pipeline):
    plain, options = ask(pipeline, policy="all"), {"expand_fraction": 0.0, "min_confidence": 1.0}
    assert ask(pipeline, **options).token_ids == plain.token_ids
    limit = plain.prompt.num_slots - 1
    limited = ask(pipeline, **options, max_prompt_slots=limit)
    assert limit - pipeline.checkpoint.config.chunk_size < limited.prompt.num_slots <= limit


def test_a_raised_budget_leaves_room_for_the_answer(pipeline):
    request = Request("Who?", ["word " * 5000], ExpansionOptions(0.01, min_confidence=1.0))
    config, num_slots = pipeline.checkpoint.config, pipeline.answer(request, SAMPLING).prompt.num_slots
    # Room is kept for the longest chunks, and the last one is short.
    spare = config.max_prompt_slots - SAMPLING.max_tokens - num_slots
    assert 0 <= spare < 2 * config.chunk_size


def test_no_passages_leave_the_question(pipeline):
    answer = pipeline.answer(Request("Who?", []), SAMPLING)
    assert answer.prompt.num_slots == 1 + len(pipeline.chunker.question_ids("Who?"))


def test_a_prompt_over_the_window_is_refused_before_it_runs(pipeline):
    with pytest.raises(InvalidRequest, match="the decoder's window is 4096"):
        pipeline.answer(Request("Who?", ["word " * 5000], ExpansionOptions(1.0)), SAMPLING)


def test_attention_is_not_read_beyond_the_window(pipeline, tiny_checkpoint):
    context = pipeline.prepare(Request("Who?", PASSAGES), max_tokens=1)
    vectors = pipeline.encode(context)
    needed = len(context.chunks) + pipeline.chunker.num_other_slots(pipeline.chunker.question_ids(NULL_QUESTION))

    def read(window):
        config = replace(tiny_checkpoint.config, max_prompt_slots=window)
        return Pipeline(replace(tiny_checkpoint, config=config)).read_attention(context, *vectors)

    assert read(needed).null.shape[1] == len(context.chunks)
    with pytest.raises(InvalidRequest, match=f"needs {needed} slots to ask a question of its own, .* is {needed - 1};"):
        read(needed - 1)


def test_chunk_vectors_do_not_depend_on_the_batch(pipeline):
    chunks = pipeline.chunker.context_chunks(PASSAGES)
    together = encode_chunks(pipeline.checkpoint.encoder, pipeline.chunker, chunks)
    alone = [encode_chunks(pipeline.checkpoint.encoder, pipeline.chunker, [chunk]) for chunk in chunks]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
