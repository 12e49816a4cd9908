"""Distillation without labels: a teacher's answers and distributions, written, read, and learned from."""

import json
import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from question_files import PASSAGES, ROW, write_lines, write_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from refrag.data.questions.contexts import RowContexts
from refrag.data.questions.passages import read_pool
from refrag.data.questions.read import read_questions
from refrag.data.questions.row import SourcePassage
from refrag.data.questions.unlabelled import ask_unlabelled
from refrag.errors import InvalidRequest, TrainingError
from refrag.teacher_forcing import distribution
from refrag.teacher_forcing.batches import MixedExample, collate_mixed, question_segments
from refrag.teacher_forcing.predict import predict
from refrag.training import targets
from refrag.training.recipe import make_stage
from refrag.training.settings import Finetune, Optimisation, QuestionFile, Questions
from refrag.training.stages.rows import RowSource
from refrag.training.target_tensors import ANSWERS_PER_PART
from refrag.training.targets import answer, read_targets, write_targets
from refrag_client.cli.main import main

MAX_TOKENS, TEACHER = 6, "hash of the teacher"


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint


@pytest.fixture
def folder(checkpoint, tmp_path):
    """Targets for requests made of four passages."""
    rows = requests(tmp_path, 5)
    write_targets(checkpoint.decoder, checkpoint.chunker, rows, 2, MAX_TOKENS, tmp_path / "targets", TEACHER)
    return tmp_path / "targets"


def requests(tmp_path, num_rows):
    pool = list(read_pool(write_lines(tmp_path / "pool.jsonl", PASSAGES)).values())
    return ask_unlabelled(pool, num_rows, num_passages=3, seed=0)


def taught_questions(folder, **changes):
    file = QuestionFile(path=str(folder / "questions.jsonl"), targets=str(folder / "targets.safetensors"))
    return Questions(files=[file], **changes)


def row_source(checkpoint, folder, **changes):
    return RowSource(taught_questions(folder, **changes), checkpoint.chunker)


def test_requests_are_about_their_passages_and_the_same_for_a_seed(tmp_path):
    pool = list(read_pool(write_lines(tmp_path / "pool.jsonl", PASSAGES)).values())
    rows = ask_unlabelled(pool, 40, 3, seed=1)
    assert rows == ask_unlabelled(pool, 40, 3, seed=1) != ask_unlabelled(pool, 40, 3, seed=2)
    assert all(row.gold == (0,) and len({each.id for each in row.passages}) == 3 for row in rows)
    named = [row for row in rows if "Lurd" in row.question]
    assert named and all("Lurd" in row.passages[0].content for row in named)


def test_most_requests_ask_for_what_a_sentence_of_the_passage_goes_on_to_say():
    text = "Ana Korvin built the bridge over the Lurd in four cold years. Short one. The mill stands beside it."
    pool = [SourcePassage(str(number), "", text) for number in range(3)]
    asked = {row.question for row in ask_unlabelled(pool, 200, 2, seed=0)}
    begun = [one for one in asked if "Ana Korvin built the bridge over" in one]
    assert {one[:4] for one in begun} == {"Ana ", "Comp", "What"} and not any("cold years" in one for one in begun)
    assert not any("Short one" in one for one in asked)


def test_what_is_written_is_a_question_set_with_the_teachers_answers(checkpoint, folder):
    rows = read_questions(folder / "questions.jsonl")
    targets = read_targets(folder / "targets.safetensors", rows, checkpoint.chunker.decoder_tokenizer)
    assert len(targets) == len(rows) == 5
    for row in rows:
        token_ids = targets[row.id].token_ids
        assert 1 <= len(token_ids) <= MAX_TOKENS
        text = checkpoint.decoder_tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        assert row.answers == ((text,) if text else ())


def test_targets_are_the_decoders_distributions_over_the_plain_prompt(checkpoint, folder):
    row, *others = read_questions(folder / "questions.jsonl")
    tokenizer = checkpoint.chunker.decoder_tokenizer
    target = read_targets(folder / "targets.safetensors", [row, *others], tokenizer)[row.id]
    context = RowContexts(checkpoint.chunker).make(row, 2, seed=0)
    prompt = [token for chunk in context.chunks for token in chunk.token_ids] + context.questions[0].prompt_ids
    ids = torch.tensor([[checkpoint.decoder_tokenizer.bos_token_id, *prompt, *target.token_ids]])
    with torch.no_grad():
        logits = checkpoint.decoder.backbone(input_ids=ids).logits[0, -len(target.token_ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == target.token_ids
    expected = logits.log_softmax(-1).gather(-1, target.distribution.likeliest_ids)
    assert torch.allclose(target.distribution.log_probabilities[:, :-1], expected, atol=1e-2)
    assert torch.allclose(target.distribution.log_probabilities.exp().sum(-1), torch.ones(len(logits)), atol=1e-2)
    assert float(target.distribution.divergences(logits).max()) < 1e-3


@pytest.mark.parametrize("row_slots", [None, 400])
def test_each_token_is_held_against_its_own_target(checkpoint, folder, row_slots):
    rows = row_source(checkpoint, folder)
    contexts = rows.draw(random.Random(0), checkpoint.chunker, 2, num_tokens=400)
    examples = [MixedExample(c.chunks, range(len(c.chunks)), question_segments(c.questions[0])) for c in contexts]
    head_ids = checkpoint.chunker.frame.head_ids
    with torch.no_grad():
        together = predict(
            checkpoint.decoder, collate_mixed(examples, checkpoint.decoder.vocab_size, head_ids, row_slots)
        )
        alone = [
            predict(checkpoint.decoder, collate_mixed([one], checkpoint.decoder.vocab_size, head_ids)).divergences
            for one in examples
        ]
    assert len(together.divergences) == sum(len(c.questions[0].answer_ids) for c in contexts)
    assert torch.allclose(together.divergences.sort().values, torch.cat(alone).sort().values, atol=1e-5)


def test_students_learn_the_teachers_distributions(checkpoint, folder):
    run = Finetune(
        stage="finetune",
        form="plain",
        optimisation=Optimisation(num_steps=1, learning_rate=1e-3),
        tokens_per_step=300,
        max_passages=1,
        questions=taught_questions(folder),
    )
    source, objective = make_stage(checkpoint, run)
    loss, figures = objective(source.draw(random.Random(0), 0.0))
    assert figures["divergence"] > 0
    assert loss.item() == pytest.approx(figures["loss"] + 2 * figures["divergence"], rel=1e-5)


def test_students_read_at_least_the_passages_that_their_teacher_read(checkpoint, folder):
    rows = row_source(checkpoint, folder)
    for asked, read in ((1, 2), (2, 2), (3, 3)):
        contexts = rows.draw(random.Random(0), checkpoint.chunker, asked, num_tokens=600)
        assert {len(context.passages) for context in contexts} == {read}


def test_targets_that_do_not_tell_what_their_teacher_read_are_refused(checkpoint, folder):
    file = folder / "targets.safetensors"
    with safe_open(file, "pt") as opened:
        rows = opened.metadata()["rows"]
    save_file(load_file(file), file, {"rows": rows})
    with pytest.raises(TrainingError, match=r"how many passages the teacher read.*write the targets again"):
        row_source(checkpoint, folder)


def test_targets_of_a_teacher_with_other_tokens_are_refused(checkpoint, folder):
    tokenizer = deepcopy(checkpoint.decoder_tokenizer)
    tokenizer.add_tokens(["harbourmaster"])
    with pytest.raises(TrainingError, match="holds the tokens of another decoder than this one; write the targets"):
        row_source(replace(checkpoint, decoder_tokenizer=tokenizer), folder)


def test_questions_with_a_teacher_are_never_made_answerless(checkpoint, folder):
    rows = row_source(checkpoint, folder, answerless_share=1.0)
    targets = {tuple(each.token_ids) for each in rows.targets[0].values()}
    for context in rows.draw(random.Random(0), checkpoint.chunker, 2, num_tokens=600):
        assert tuple(context.questions[0].answer_ids) in targets


def test_targets_of_other_rows_are_refused(checkpoint, folder):
    tokenizer = checkpoint.chunker.decoder_tokenizer
    rows = read_questions(folder / "questions.jsonl")
    with pytest.raises(TrainingError, match="holds 5 answers, but there are 4 questions"):
        read_targets(folder / "targets.safetensors", rows[:4], tokenizer)
    with pytest.raises(TrainingError, match="holds answers to other questions, to these in another order"):
        read_targets(folder / "targets.safetensors", rows[::-1], tokenizer)
    with pytest.raises(TrainingError, match="write the targets again"):
        read_targets(folder / "questions.jsonl", rows, tokenizer)


def test_a_prompt_without_room_for_an_answer_is_refused_before_any_is_answered(checkpoint, tmp_path):
    long = {**PASSAGES[0], "text": "a tide " * 3000}
    write_lines(tmp_path / "passages.jsonl", [long])
    path = write_lines(tmp_path / "long.jsonl", [{**ROW, "passages": ["mill"], "gold": [0]}])
    with pytest.raises(TrainingError, match=r"row 'q1' has a plain prompt of \d+ tokens, and 4090 leave room"):
        rows = read_questions(path)
        write_targets(checkpoint.decoder, checkpoint.chunker, rows, 1, MAX_TOKENS, tmp_path / "out", TEACHER)
    assert not (tmp_path / "out").exists()


class CutOff(Exception):
    """As a kill or a full disk would end a call."""


@pytest.fixture
def cut_off(checkpoint, tmp_path, monkeypatch):
    """Return rows, the folder of a call that was cut off at its 40th answer, and a list that grows with each answer."""
    rows, answered, num_allowed = requests(tmp_path, 50), [], 39

    def answer_or_end(*arguments):
        if len(answered) == num_allowed:
            raise CutOff
        answered.append(arguments)
        return answer(*arguments)

    monkeypatch.setattr(targets, "answer", answer_or_end)
    with pytest.raises(CutOff):
        write_targets(checkpoint.decoder, checkpoint.chunker, rows, 2, MAX_TOKENS, tmp_path / "cut", TEACHER)
    answered.clear()
    num_allowed = None
    return rows, tmp_path / "cut", answered


def test_a_call_that_was_cut_off_goes_on_after_the_answers_that_it_kept(checkpoint, cut_off, tmp_path):
    rows, folder, answered = cut_off
    assert not (folder / "targets.safetensors").exists()
    write_targets(checkpoint.decoder, checkpoint.chunker, rows, 2, MAX_TOKENS, folder, TEACHER)
    assert len(answered) == 50 - 2 * ANSWERS_PER_PART
    write_targets(checkpoint.decoder, checkpoint.chunker, rows, 2, MAX_TOKENS, tmp_path / "whole", TEACHER)
    for name in ("questions.jsonl", "passages.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    resumed, whole = (load_file(place / "targets.safetensors") for place in (folder, tmp_path / "whole"))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert not (folder / "parts").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"teacher": "another"}, "teacher"), ({"max_tokens": 5}, "max_tokens"), ({"num_passages": 1}, "num_passages")],
)
def test_a_call_that_was_cut_off_is_not_gone_on_with_by_another(checkpoint, cut_off, changes, named):
    rows, folder, answered = cut_off
    options = {"num_passages": 2, "max_tokens": MAX_TOKENS, "teacher": TEACHER, **changes}
    with pytest.raises(TrainingError, match=rf"had other {named}; give the same ones, name another folder"):
        write_targets(checkpoint.decoder, checkpoint.chunker, rows, folder=folder, **options)
    assert not answered
    with pytest.raises(TrainingError, match="had other rows; "):
        write_targets(checkpoint.decoder, checkpoint.chunker, rows[1:], 2, MAX_TOKENS, folder, TEACHER)


def test_a_damaged_part_is_named(checkpoint, cut_off):
    rows, folder, _ = cut_off
    (folder / "parts" / "00000016.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainingError, match=r"00000016.safetensors cannot be read: .*; remove .*parts to begin anew"):
        write_targets(checkpoint.decoder, checkpoint.chunker, rows, 2, MAX_TOKENS, folder, TEACHER)


def test_the_command_needs_nothing_but_passages(checkpoint, tmp_path, capsys):
    checkpoint.save(tmp_path / "checkpoint")
    write_lines(tmp_path / "pool.jsonl", PASSAGES)
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--passages", str(tmp_path / "pool.jsonl")]
    assert main(["train", "targets", str(tmp_path / "out"), *options, "--num-rows", "3", "--max-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 3
    assert len(load_file(tmp_path / "out" / "targets.safetensors")["lengths"]) == 3


def test_the_command_answers_a_question_set(checkpoint, tmp_path, capsys):
    checkpoint.save(tmp_path / "checkpoint")
    turns = [{"role": "user", "text": "Which river?"}, {"role": "assistant", "text": "The Lurd."}]
    path = write_rows(tmp_path, [{**ROW, "history": turns}])
    options = ["--checkpoint", str(tmp_path / "checkpoint"), "--questions", str(path), "--max-tokens", "4"]
    assert main(["train", "targets", str(tmp_path / "out"), *options]) == 0
    [row] = read_questions(tmp_path / "out" / "questions.jsonl")
    assert (row.id, row.question, row.history) == (
        "q1",
        ROW["question"],
        (("user", "Which river?"), ("assistant", "The Lurd.")),
    )


def test_likeliest_tokens_beyond_the_vocabulary_are_not_asked_for(monkeypatch):
    monkeypatch.setattr(distribution, "NUM_LIKELIEST", 9)
    logits = torch.randn(2, 5)
    assert distribution.TopDistribution.of(logits).likeliest_ids.shape == (2, 5)


def test_numbers_below_one_are_refused(checkpoint, tmp_path):
    pool = list(read_pool(write_lines(tmp_path / "pool.jsonl", PASSAGES)).values())
    with pytest.raises(InvalidRequest, match="num_rows is 0"):
        ask_unlabelled(pool, 0, 3, seed=0)
    with pytest.raises(TrainingError, match="max_tokens is 0"):
        write_targets(checkpoint.decoder, checkpoint.chunker, [], 1, 0, tmp_path / "out", TEACHER)
