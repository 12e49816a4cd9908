"""A run on a question set asks what the pipeline would be asked, scores it, resumes, and reports every condition."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from question_files import ROW, write_beir, write_rows

from refrag.base_models.reference import BaseModel
from refrag.commands.evaluate import _report
from refrag.data.questions.read import read_questions
from refrag.data.questions.row import SourcePassage
from refrag.data.spans import Spans
from refrag.errors import CheckpointError, InvalidRequest
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.questions.answers_file import AnswersFile
from refrag.evaluation.questions.base_encoder import BaseEncoder
from refrag.evaluation.questions.choices import choose_by_oracle, find_answer_chunks
from refrag.evaluation.questions.conditions import DEFAULT_CONDITIONS, parse_condition, parse_conditions, spell
from refrag.evaluation.questions.contexts import Contexts
from refrag.evaluation.questions.controls import find_control
from refrag.evaluation.questions.evaluate import evaluate_questions
from refrag.evaluation.questions.identity import Inputs
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.run import QuestionRun, make_request, score
from refrag.evaluation.questions.summary import render, render_policies, summarise
from refrag.evaluation.reading import TargetedPrompt, read
from refrag.history import Turn
from refrag.model.attention_heads import AttentionHeads
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag.teacher_forcing.prompt_reader import PromptReader

OPTIONS = QuestionOptions(max_tokens=4, source_order=True)
TURNS = [{"role": "user", "text": "Is there a mill?"}, {"role": "assistant", "text": "It burned down."}]
ROWS = [
    ROW,
    {**ROW, "id": "q2", "question": "When did the mill burn?", "answers": ["1911"], "passages": ["mill"], "gold": [0]},
    {**ROW, "id": "q3", "question": "Who sells milk?", "answers": [], "passages": ["bees", "mill"], "gold": []},
    {**ROW, "id": "q4", "question": "Who built it?", "passages": ["bees", "bridge"], "history": TURNS * 2},
]


@pytest.fixture
def rows(tmp_path):
    return read_questions(write_rows(tmp_path, ROWS))


@pytest.fixture(scope="module")
def plain_models(tiny_checkpoint):
    return Models(tiny_checkpoint, tiny_checkpoint.decoder, "plain decoder")


def parse(*texts):
    return parse_conditions(texts, 16)


def build(models, row, text, options=OPTIONS):
    contexts = Contexts(models, lambda one: make_request(one, options), options.window, options.max_tokens, seed=0)
    return contexts.build(row, row, parse_condition(text, 16))


def run_all(models, rows, path, conditions=("gold", "p=0.5:learned", "p=1:random"), options=OPTIONS):
    run = QuestionRun(models, rows, parse(*conditions), options)
    file = AnswersFile(path, {"run": 1})
    run.answer_all(file)
    return run, file


def test_conditions_are_spelled_as_they_are_read_and_bring_what_every_table_has():
    spelled = list(map(spell, parse("p=0.1:learned", "k=8:p=0", "plain:p=0.2", "p=0.1:random:zeroed")))
    assert spelled[:2] == ["none", "plain"]
    assert spelled[2:6] == ["k=16:p=0.1:learned", "k=8:p=0", "plain:k=16:p=0.2", "k=16:p=0.1:random:zeroed"]
    assert {"k=16:p=0", "k=16:p=0:shuffled", "k=8:p=0:shuffled", "k=8:p=0:zeroed"} < set(spelled)
    assert list(map(spell, parse(*spelled))) == spelled and len(parse(*DEFAULT_CONDITIONS)) == 14


@pytest.mark.parametrize("text", ["plane", "p=0.1", "p=2:random", "p=0:learned", "k=8", "none:p=0", "p=x", "k=1.5:p=0"])
def test_a_condition_of_another_form_is_refused(text):
    with pytest.raises(InvalidRequest, match="is no condition; write none, plain"):
        parse(text)


def test_a_policy_that_heeds_no_budget_is_no_condition():
    with pytest.raises(InvalidRequest, match="all expands every chunk, whatever p is; write p=1:learned for that"):
        parse("p=0.1:all")


@pytest.mark.parametrize("policy", ["learned-as-served", "random", "attention"])
def test_a_compressed_prompt_is_the_pipelines(plain_models, rows, policy):
    request = make_request(rows[0], OPTIONS)
    served = policy.replace("-as-served", "")
    built = build(plain_models, rows[0], f"p=0.5:{policy}")
    seed = Contexts(plain_models, lambda row: request, None, 4, seed=0)._seed(rows[0])
    asked = replace(request, expansion=ExpansionOptions(0.5, served, seed))
    answer = Pipeline(plain_models.checkpoint).answer(asked, SamplingParams(max_tokens=4))
    assert built.prompt.input_ids.tolist() == answer.prompt.input_ids.tolist()
    assert list(built.expanded) == answer.expanded
    assert PromptReader(plain_models.checkpoint.decoder, built.prompt).answer(4)[0] == answer.token_ids


def test_all_heads_are_read_though_the_checkpoint_names_one(plain_models, rows):
    one_head = AttentionHeads(((0, 0),), (1.0,))
    models = replace(plain_models, checkpoint=replace(plain_models.checkpoint, heads=one_head))
    contexts = Contexts(models, lambda row: make_request(row, OPTIONS), None, 4, seed=0)
    condition = parse_condition("p=0.5:attention-all-heads", 16)
    default = AttentionHeads.default(plain_models.checkpoint.decoder)
    assert contexts._pipeline(condition).heads == default
    assert contexts._pipeline(parse_condition("p=0.5:attention", 16)).heads == one_head
    expected = build(plain_models, rows[0], "p=0.5:attention").expanded
    assert list(contexts.build(rows[0], None, condition).expanded) == list(expected)


def test_the_plain_prompt_is_the_pipelines_with_everything_expanded(plain_models, rows):
    request = replace(make_request(rows[0], OPTIONS), expansion=ExpansionOptions(1.0, "all"))
    expected = Pipeline(plain_models.checkpoint).answer(request, SamplingParams(max_tokens=1)).prompt
    assert build(plain_models, rows[0], "plain").prompt.input_ids.tolist() == expected.input_ids.tolist()
    assert build(plain_models, rows[0], "none").context_tokens == 0


def test_evidence_alone_is_the_row_with_its_gold_passages(plain_models, rows):
    bridge = replace(rows[0], passages=rows[0].passages[1:2])
    assert torch.equal(
        build(plain_models, rows[0], "gold").prompt.input_ids, build(plain_models, bridge, "plain").prompt.input_ids
    )


def test_controls_change_the_embeddings_and_nothing_else(plain_models, rows):
    true = build(plain_models, rows[0], "p=0")
    contexts = Contexts(plain_models, lambda one: make_request(one, OPTIONS), None, 4, seed=0)
    shuffled, zeroed = (
        contexts.build(rows[0], rows[2], parse_condition(text, 16)) for text in ("p=0:shuffled", "p=0:zeroed")
    )
    assert torch.equal(true.prompt.input_ids, shuffled.prompt.input_ids)
    assert torch.equal(true.prompt.input_ids, zeroed.prompt.input_ids)
    other = build(plain_models, rows[2], "p=0").prompt.chunk_embeddings
    assert torch.equal(shuffled.prompt.chunk_embeddings[: len(other)], other)
    assert not zeroed.prompt.chunk_embeddings.any() and true.prompt.chunk_embeddings.any()


def test_a_context_beyond_the_window_is_cut_and_the_cut_reported(plain_models, rows):
    whole = build(plain_models, rows[0], "plain")
    question = build(plain_models, rows[0], "none")
    small = replace(OPTIONS, window=len(question.prompt.input_ids) + OPTIONS.max_tokens + 40)
    cut = build(plain_models, rows[0], "plain", small)
    assert 0 < cut.cut_tokens < whole.context_tokens == cut.context_tokens
    assert (
        len(cut.prompt.input_ids) == len(whole.prompt.input_ids) - cut.cut_tokens <= small.window - OPTIONS.max_tokens
    )
    assert build(plain_models, rows[0], "p=0", small).cut_tokens == 0
    compressed = build(plain_models, rows[0], "p=0.5:random", small)
    assert compressed.cut_tokens and len(compressed.prompt.input_ids) <= small.window - OPTIONS.max_tokens
    with pytest.raises(InvalidRequest, match=r"window is 9999; the decoders have \d+ \(compressed\) and \d+"):
        build(plain_models, rows[0], "plain", replace(OPTIONS, window=9999))
    with pytest.raises(
        InvalidRequest, match=r"row 'q1': its question and newest turns need .* slots with max_tokens, the window is 9"
    ):
        build(plain_models, rows[0], "plain", replace(OPTIONS, window=9))


def test_plain_at_equal_slots_is_no_longer_than_compressed(plain_models, rows):
    compressed, plain = (build(plain_models, rows[0], text) for text in ("p=0.5:random", "plain:p=0.5"))
    assert plain.context_tokens > plain.cut_tokens > 0
    full_chunks = len(compressed.prompt.input_ids) + 16 * len(rows[0].passages)
    assert len(plain.prompt.input_ids) <= full_chunks


def test_the_likelihood_of_an_answer_is_that_of_one_teacher_forced_pass(plain_models, rows):
    decoder = plain_models.checkpoint.decoder
    prompt = build(plain_models, rows[0], "p=0.5:random").prompt
    target = plain_models.checkpoint.chunker.answer_ids("Ana Korvin")
    [reading] = read(decoder, [TargetedPrompt(prompt, target)])
    reader = PromptReader(decoder, prompt)
    reader.answer(8)
    assert reader.log_perplexity(target) == pytest.approx(reading.losses.mean(), abs=1e-4)
    assert reader.logits(target[:1]).shape == (1, decoder.vocab_size)


def test_the_base_encoder_ranks_by_its_own_mean_states_and_not_by_the_checkpoints_vectors(tiny_checkpoint, tmp_path):
    tiny_checkpoint.encoder.backbone.save_pretrained(tmp_path)
    tiny_checkpoint.decoder_tokenizer.save_pretrained(tmp_path)
    config = replace(tiny_checkpoint.config, encoder_base=BaseModel(folder=str(tmp_path)))
    based = replace(tiny_checkpoint, config=config, encoder=None)
    chunks = tiny_checkpoint.chunker.context_chunks(["The mill burned in 1911.", "Ada keeps bees.", "A bridge."])
    # A chunk that is the question is nearer to it than any other.
    assert chunks.passages[BaseEncoder(based).rank(chunks, "Ada keeps bees.")[0]] == 1


def test_similarity_of_a_base_encoder_needs_one_before_anything_is_asked(plain_models, rows):
    with pytest.raises(InvalidRequest, match="names no encoder_base; leave the condition out"):
        QuestionRun(plain_models, rows, parse("p=0.5:base-similarity"), OPTIONS)


def test_the_oracle_takes_the_chunks_with_an_answer_those_of_the_evidence_first(tiny_checkpoint, rows):
    chunker = tiny_checkpoint.with_chunk_size(4).chunker
    said = SourcePassage("said", "", "Some say that it was ANA KORVIN.")
    row = replace(rows[0], passages=(said, rows[0].passages[1]), gold=(1,), answers=("Ana Korvin",))
    places = chunker.context_chunks([passage.content for passage in row.passages]).passages
    found = find_answer_chunks(row, Spans(chunker), places)
    is_gold = [int(places[number]) == 1 for number in found]
    assert is_gold == sorted(is_gold, reverse=True) and {False, True} == set(is_gold) and len(found) == len(set(found))
    assert find_answer_chunks(row, Spans(chunker), places[:1]) == []
    assert find_answer_chunks(replace(row, answers=()), Spans(chunker), places) == []


def test_the_oracle_takes_all_of_the_evidence_where_no_passage_has_the_answers_words(tiny_checkpoint, rows):
    chunker = tiny_checkpoint.with_chunk_size(4).chunker
    row = replace(rows[0], gold=(1,), answers=("Somebody who could build.",))
    places = chunker.context_chunks([passage.content for passage in row.passages]).passages
    found = choose_by_oracle(row, Spans(chunker), places)
    assert found and found == np.flatnonzero(places == 1).tolist()


def test_the_oracle_finds_answers_as_words_of_their_own(tiny_checkpoint, rows):
    spans = Spans(tiny_checkpoint.chunker)
    nobody, body = (SourcePassage(text, "", text) for text in ("Nobody knows.", "They found no body."))
    row = replace(rows[0], passages=(nobody, body), gold=None, answers=("body",))
    places = spans.chunker.context_chunks([nobody.content, body.content]).passages
    assert {int(places[number]) for number in find_answer_chunks(row, spans, places)} == {1}
    assert find_answer_chunks(replace(row, answers=("No.",)), spans, places) == []


def test_a_conversation_is_sent_as_a_client_does_whole_or_its_last_turns_alone(rows):
    passages = [one.content for one in rows[3].passages]
    turns = [Turn(turn["role"], turn["text"]) for turn in TURNS]
    assert make_request(rows[3], OPTIONS) == Request("Who built it?", passages, history=turns * 2)
    for limit, sent in ((2, turns), (0, []), (8, turns * 2)):
        assert make_request(rows[3], replace(OPTIONS, history_turns=limit)).history == sent
    with pytest.raises(InvalidRequest, match=r"history_turns is 3; turns are sent in pairs .* give an even number"):
        replace(OPTIONS, history_turns=3)


def test_older_turns_are_chunks_behind_the_passages_and_cost_no_evidence(plain_models, rows):
    long = replace(rows[3], history=(("user", "Is there a mill?"), ("assistant", "It burned down. " * 200)))
    built = build(plain_models, long, "p=0.5:random")
    assert set(built.places.tolist()) == {0, 1, 2}
    assert set(build(plain_models, long, "gold").places.tolist()) == {0, 1}
    assert 2 not in build(plain_models, rows[3], "p=0.5:random").places


def test_beyond_the_window_the_oldest_turns_are_cut_first(plain_models, rows):
    pairs = [("user", "Is there a mill?"), ("assistant", "It burned down. " * 60)] * 3
    row = replace(rows[3], history=tuple(pairs))
    places = {}
    for window in (4096, 900, 300):
        options = replace(OPTIONS, window=window)
        places[window] = set(build(plain_models, row, "plain", options).places.tolist())
    assert places == {4096: {0, 1, 2, 3, 4}, 900: {0, 1, 3, 4}, 300: {0, 1, 4}}


# q1 ferry bridge mill, q2 mill, q3 bees mill, q4 bees bridge
def test_the_control_is_the_nearest_row_without_a_common_passage_or_with_the_fewest(rows):
    assert [find_control(rows, number).id for number in range(4)] == ["q2", "q4", "q2", "q2"]


def test_more_rows_change_no_control(rows):
    bees, another = replace(rows[1], id="bees", passages=rows[2].passages[:1]), replace(rows[1], id="another")
    for asked in ([rows[1], bees], [rows[1], bees, another]):
        assert [find_control(asked, number).id for number in range(2)] == ["bees", "q2"]


def test_a_row_is_never_its_own_control(rows):
    without = replace(rows[1], passages=(), gold=None)
    assert find_control([rows[0], without], 1) == rows[0]
    with pytest.raises(InvalidRequest, match=r"row 'q1': the control `shuffled` .* no other row has any; ask two"):
        find_control([rows[0], without], 0)


def test_rows_whose_evidence_is_not_all_among_the_passages_read_are_counted(plain_models, rows, tmp_path):
    asked = [replace(rows[0], gold=(1,)), rows[1]]
    for keep_gold, count in ((False, 1), (True, 0)):
        options = replace(OPTIONS, num_passages=1, keep_gold=keep_gold)
        run, file = run_all(plain_models, asked, tmp_path / f"{keep_gold}.jsonl", ["p=0"], options)
        assert summarise(run, file)["num_lacking_evidence"] == count


def test_controls_that_share_a_passage_are_counted(plain_models, rows, tmp_path):
    run, file = run_all(plain_models, rows, tmp_path / "a.jsonl", ["p=0"])
    counts = {row["condition"]: row.get("num_sharing_controls") for row in summarise(run, file)["rows"]}
    assert counts == {"none": None, "plain": None, "k=16:p=0": None, "k=16:p=0:zeroed": None, "k=16:p=0:shuffled": 2}


def test_rows_are_scored_by_what_they_have(rows):
    assert score("Ana Korvin", rows[0])["exact_match"] == 1 and "true_answer" not in score("", rows[0])
    assert score("not in the passages", rows[2]) == {"refused": 1}
    assert score("Odo", replace(rows[0], extra={"true_answer": "Odo"}))["true_answer"] == 1


def test_everything_expanded_is_faithful_to_the_same_decoder_plain(plain_models, rows, tmp_path):
    run, file = run_all(plain_models, rows, tmp_path / "a.jsonl")
    for row in rows:
        answer, plain = file[row.id, "k=16:p=1:random"], file[row.id, "plain"]
        assert answer["divergence"] == pytest.approx(0, abs=1e-6) and answer["agreement"] == 1
        assert answer["token_ids"] == plain["token_ids"]
        assert answer.get("log_perplexity") == pytest.approx(plain.get("log_perplexity"))
    assert ("q3", "gold") not in file and ("q1", "gold") in file
    assert file["q1", "k=16:p=1:random"]["gold_recall"] == 1 and len(run.conditions) == 8


def test_a_killed_run_resumes_and_ends_as_one_that_was_not(plain_models, rows, tmp_path):
    whole, interrupted = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    run_all(plain_models, rows, whole)
    lines = whole.read_text().splitlines(keepends=True)
    interrupted.write_text("".join(lines[:11]) + lines[11][:20])
    before = interrupted.read_text().splitlines()[:11]
    run_all(plain_models, rows, interrupted)
    assert interrupted.read_text().splitlines()[:11] == before
    assert sorted(interrupted.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    run_all(plain_models, rows, interrupted)
    assert len(interrupted.read_text().splitlines()) == len(lines)


def test_another_run_may_not_go_on_in_the_same_file(tmp_path):
    path = tmp_path / "a.jsonl"
    first = AnswersFile(path, {"checkpoint": "abc", "seed": 0})
    with pytest.raises(InvalidRequest, match="is being written by another run"):
        AnswersFile(path, {"checkpoint": "abc", "seed": 0})
    del first
    with pytest.raises(InvalidRequest, match=r"another run \(checkpoint abc there, abd here\); name another --output"):
        AnswersFile(path, {"checkpoint": "abd", "seed": 0})
    path.write_text('{"prompt": 1}\n')
    with pytest.raises(InvalidRequest, match="is no file of answers"):
        AnswersFile(path, {})
    path.write_text("half\n")
    with pytest.raises(InvalidRequest, match="is damaged"):
        AnswersFile(path, {})


def test_the_report_has_every_condition_with_its_differences_and_reads_as_markdown(plain_models, rows, tmp_path):
    conditions = ("gold", "plain:p=0.5", "p=0.5:learned", "p=0.5:random", "p=1:random")
    run, file = run_all(plain_models, rows, tmp_path / "a.jsonl", conditions)
    report = json.loads(json.dumps(summarise(run, file)))
    assert [row["condition"] for row in report["rows"]] == list(map(spell, run.conditions))
    plain = report["rows"][1]
    assert plain["num_questions"] == 4 and plain["refused_rightly"]["value"] in (0, 1)
    pairs = {(one["condition"], one["against"]) for one in report["differences"]}
    assert {("k=16:p=0", "k=16:p=0:shuffled"), ("k=16:p=0", "k=16:p=0:zeroed")} <= pairs
    at_equal_slots = {one for one, other in pairs if other == "plain:k=16:p=0.5"}
    assert at_equal_slots == {"k=16:p=0.5:learned", "k=16:p=0.5:random"}
    same_budget = ("k=16:p=0.5:random", "k=16:p=0.5:learned")
    assert [pair for pair in pairs if "learned" in pair[1] or "random" in pair[1]] == [same_budget]
    recall = {row["condition"]: row["gold_recall"]["value"] for row in report["rows"] if "gold_recall" in row}
    compared = next(one for one in report["differences"] if (one["condition"], one["against"]) == same_budget)
    assert compared["gold_recall"]["value"] == pytest.approx(recall[same_budget[0]] - recall[same_budget[1]])
    policies = render_policies(report, (same_budget[1], "plain"))
    assert policies.count("| k=16:p=0.5:random") == 3 and "zeroed" not in policies
    same = next(one for one in report["differences"] if one["condition"] == "k=16:p=1:random")
    assert [row["condition"] for row in report["rows"] if not row["num_questions"]] == []
    assert (same["against"], same["log_perplexity"]["value"]) == ("plain", 0)
    text = render({**report, "command": "c", "commit": "d", "machine": "m", "seed": 0, "data": "town"})
    assert text.count("| k=16:p=0:zeroed") >= 4 and "## Difference from `none`" in text


@pytest.fixture
def saved(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_one_command_evaluates_and_a_larger_number_of_rows_adds_to_it(saved, tmp_path, capsys):
    data, output = write_rows(tmp_path, ROWS), tmp_path / "results" / "town.json"
    inputs = Inputs(saved, None, data)
    evaluate_questions(inputs, ["p=0"], replace(OPTIONS, num_rows=2), output)
    answers = output.with_suffix(".answers.jsonl")
    first = answers.read_text()
    report = evaluate_questions(inputs, ["p=0"], OPTIONS, output)
    assert answers.read_text().startswith(first) and report["num_rows"] == 4
    assert json.loads(output.read_text()) == json.loads(json.dumps(report))
    with pytest.raises(InvalidRequest, match="max_tokens 4 there, 5 here"):
        evaluate_questions(inputs, ["p=0"], replace(OPTIONS, max_tokens=5), output)
    _report(type("Arguments", (), {"evaluation": output}))
    assert capsys.readouterr().out.strip() == render(report)


def test_questions_without_answers_are_judged_by_fidelity(saved, tmp_path):
    folder = write_beir(tmp_path / "beir", "b1\tbridge\t1\nb2\tbees\t1\n")
    report = evaluate_questions(Inputs(saved, None, folder), ["p=0.5:similarity"], OPTIONS, tmp_path / "out.json")
    row = next(one for one in report["rows"] if "similarity" in one["condition"])
    assert "f1" not in row and row["divergence"]["value"] >= 0 and "gold_recall" in row


def test_a_run_resumes_in_the_folders_that_it_reads(saved, tmp_path):
    folder = write_beir(tmp_path / "beir", "b1\tbridge\t1\nb2\tbees\t1\n")
    for output in (saved / "town.json", folder / "town.json"):
        reports = [evaluate_questions(Inputs(saved, None, folder), ["none"], OPTIONS, output) for _ in range(2)]
        assert reports[0]["rows"] == reports[1]["rows"]


def test_reports_whose_names_have_a_dot_have_answers_of_their_own(saved, tmp_path):
    data = write_rows(tmp_path, ROWS[:2])
    for seed, name in enumerate(("run-0.1", "run-0.2")):
        evaluate_questions(Inputs(saved, None, data), ["none"], replace(OPTIONS, seed=seed), tmp_path / name)
    assert sorted(path.name for path in tmp_path.glob("run*")) == [
        "run-0.1",
        "run-0.1.answers.jsonl",
        "run-0.2",
        "run-0.2.answers.jsonl",
    ]


def test_what_would_fail_later_is_refused_before_anything_is_asked(plain_models, rows, tmp_path):
    with pytest.raises(InvalidRequest, match="no other row has any; ask two or more"):
        QuestionRun(plain_models, rows[:1], parse("p=0"), OPTIONS)
    without = replace(plain_models, checkpoint=replace(plain_models.checkpoint, policy=None))
    with pytest.raises(CheckpointError, match=r"no policy\.safetensors"):
        QuestionRun(without, rows, parse("p=0.1:learned"), OPTIONS)
    with pytest.raises(InvalidRequest, match="polcy"):
        QuestionRun(plain_models, rows, parse("p=0.1:polcy"), OPTIONS)
    with pytest.raises(InvalidRequest, match="max_tokens is 0; it must be at least 1"):
        QuestionOptions(max_tokens=0)


def test_the_plain_decoder_may_be_that_of_a_checkpoint(saved, tmp_path):
    by_checkpoint, by_folder = (load_models(saved, plain).plain for plain in (saved, saved / "decoder"))
    weights, others = by_checkpoint.state_dict(), by_folder.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in others)
