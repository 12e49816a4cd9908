"""Each stage draws, trains and minimises the right things; test_policy_stage.py has the policy's own algorithm."""

import random
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from minimising import minimise
from question_files import ROW, write_lines, write_rows
from torch.nn import functional

from refrag.data.contexts import ContextMaker
from refrag.data.sources import TextSource
from refrag.data.tasks import TASKS
from refrag.errors import TrainingError
from refrag.model.policy import pick_in_turn
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import (
    ContextBatch,
    MixedExample,
    Segment,
    collate_contexts,
    collate_mixed,
    encoder_batch,
)
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.pair import fit_projector
from refrag.training.recipe import make_stage
from refrag.training.settings import (
    Continue,
    Curriculum,
    Finetune,
    Gains,
    Optimisation,
    Policy,
    Pretrain,
    QuestionFile,
    Questions,
    Reconstruct,
    Recover,
    Replay,
    Select,
)
from refrag.training.stages import finetune, pretrain, questions, recover, rewards, selection
from refrag.training.stages.finetune import FinetuneBatch, Finetuning
from refrag.training.stages.rows import RowSource
from refrag.training.stages.selection import selection_loss

COMMON = {"optimisation": Optimisation(num_steps=1, learning_rate=1e-3), "tokens_per_step": 600}
TEXT = {**COMMON, "sources": [TextSource(kind="world")]}
CURRICULUM = Curriculum(num_chunks=[1, 2, 4])
PRETRAIN = Pretrain(stage="pretrain", window_tokens=50, max_passages=4, **TEXT)
RECOVER = Recover(stage="recover", rank=8, num_negatives=50, **TEXT)
RECONSTRUCT = Reconstruct(stage="reconstruct", curriculum=CURRICULUM, **TEXT)
CONTINUE = Continue(stage="continue", curriculum=CURRICULUM, continuation_tokens=10, **TEXT)
REPLAY = Replay(share=1.0, sources=TEXT["sources"], curriculum=CURRICULUM, continuation_tokens=10)
FINETUNE = Finetune(stage="finetune", max_passages=4, **COMMON)
RUNS = {
    "pretrain": PRETRAIN,
    "pretrain on text": PRETRAIN.model_copy(update={"text_share": 1.0}),
    "recover": RECOVER,
    "reconstruct": RECONSTRUCT,
    "reconstruct with the decoder": RECONSTRUCT.model_copy(update={"decoder_trains": True}),
    "continue": CONTINUE,
    "selective": CONTINUE.model_copy(update={"expand_fractions": [0.0, 0.5]}),
    "plain continue": CONTINUE.model_copy(update={"form": "plain"}),
    "finetune": FINETUNE,
    "finetune with text": FINETUNE.model_copy(update={"replay": REPLAY}),
    "finetune without labels": FINETUNE.model_copy(update={"policy_loss_weight": 0.0}),
    "finetune with a frozen encoder": FINETUNE.model_copy(update={"encoder_trains": False, "replay": REPLAY}),
    "plain finetune": FINETUNE.model_copy(update={"form": "plain"}),
    "plain finetune with text": FINETUNE.model_copy(update={"form": "plain", "replay": REPLAY}),
    "select": Select(stage="select", max_passages=4, **COMMON),
    "gains": Gains(stage="gains", max_passages=4, num_candidates=3, **COMMON),
    "policy": Policy(stage="policy", max_passages=4, group_size=2, **COMMON),
}
TRAINED = {
    "pretrain": {"decoder"},
    "pretrain on text": {"decoder"},
    "recover": {"encoder", "projector"},
    "reconstruct": {"encoder", "projector"},
    "reconstruct with the decoder": {"encoder", "projector", "decoder"},
    "continue": {"encoder", "projector", "decoder"},
    "selective": {"encoder", "projector", "decoder"},
    "plain continue": {"decoder"},
    "finetune": {"encoder", "projector", "policy", "decoder"},
    "finetune with text": {"encoder", "projector", "policy", "decoder"},
    "finetune without labels": {"encoder", "projector", "decoder"},
    "finetune with a frozen encoder": {"projector", "policy", "decoder"},
    "plain finetune": {"decoder"},
    "plain finetune with text": {"decoder"},
    "select": {"policy"},
    "gains": {"policy"},
    "policy": {"policy"},
}
EACH_RUN = pytest.mark.parametrize("name", RUNS)
BOS_ID = 1


@pytest.fixture
def checkpoint(tiny_checkpoint):
    """Parts of its own, for a stage decides what of them trains."""
    return replace(tiny_checkpoint, **{name: deepcopy(part) for name, part in tiny_checkpoint.modules.items()})


@pytest.fixture(scope="module")
def contexts(tiny_checkpoint):
    rng = random.Random(0)
    maker = ContextMaker.draw(rng, tiny_checkpoint.chunker)
    return [maker.ask_many(rng, count, 4) for count in (2, 3)]


@pytest.fixture(scope="module")
def batch(contexts, tiny_checkpoint):
    return collate_contexts(tiny_checkpoint.chunker, contexts, seed=0)


def source_of(checkpoint, name):
    return make_stage(checkpoint, RUNS[name])[0]


def draw(source, seed, progress=0.9):
    return source.draw(random.Random(seed), progress)


def questions_of(batch):
    return batch.questions if isinstance(batch, FinetuneBatch) else batch


def plain_values(value):
    """Tensors and arrays as lists, all the way down, so that == compares batches."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain_values(one) for one in value]
    if is_dataclass(value):
        return {field.name: plain_values(getattr(value, field.name)) for field in fields(value)}
    return value


def chunk_size_of(batch):
    return max(len(chunk) for context in batch.contexts for chunk in context.chunks)


# Sources


@EACH_RUN
def test_a_restored_source_draws_the_same_next_batch(checkpoint, name):
    source, restored = source_of(checkpoint, name), source_of(checkpoint, name)
    for seed in range(3):
        draw(source, seed)
    restored.restore(source.state())
    assert plain_values(draw(restored, 3)) == plain_values(draw(source, 3))
    assert restored.state() == source.state()


@pytest.mark.parametrize("name", ["pretrain on text", "reconstruct", "continue", "selective", "plain continue"])
def test_a_batch_of_text_holds_at_most_the_tokens_of_a_step_and_more_than_half(checkpoint, name):
    source = source_of(checkpoint, name)
    for seed in range(10):
        batch = draw(source, seed)
        text = int((batch.weights > 0).sum())
        encoded = 0 if batch.chunks is None else int(batch.chunks.attention_mask.sum())
        shown = int((batch.example_ids >= 0).sum()) - len(batch.input_ids)
        tokens = shown if name.startswith("plain") else text + encoded
        assert COMMON["tokens_per_step"] / 2 < tokens <= COMMON["tokens_per_step"]


@pytest.mark.parametrize("name", ["pretrain", "plain finetune"])
def test_a_batch_of_questions_is_about_as_large_as_a_step(checkpoint, name, monkeypatch):
    source = source_of(checkpoint, name)
    source.settings = source.settings.model_copy(update={"tokens_per_step": 8000, "text_share": 0.0})
    # The stage's are of the demo's vocabulary, with which a text has half as many tokens as here.
    monkeypatch.setattr(questions, "TOKENS_PER_PASSAGE", 145)
    monkeypatch.setattr(questions, "TOKENS_PER_QUESTION", 45)
    slots = [int((questions_of(draw(source, seed)).example_ids >= 0).sum()) for seed in range(4)]
    assert 0.75 * 8000 < sum(slots) / len(slots) < 1.25 * 8000


def test_rollouts_are_about_as_large_as_a_step(checkpoint):
    source = source_of(checkpoint, "policy")
    settings = source.settings = source.settings.model_copy(update={"tokens_per_step": 4000})
    for seed in range(4):
        batch = draw(source, seed)
        slots = [
            settings.group_size * (len(context.chunks) + int(0.1 * len(context.chunks)) * chunk_size_of(batch))
            for context in batch.contexts
        ]
        assert sum(slots[:-1]) < 4000 <= sum(slots)


@pytest.mark.parametrize("name", ["reconstruct", "continue", "finetune", "policy"])
def test_every_trained_chunk_size_is_drawn_and_no_other(checkpoint, name):
    source = source_of(checkpoint, name)
    sizes = set()
    for seed in range(12):
        batch = questions_of(draw(source, seed))
        sizes.add(chunk_size_of(batch) if isinstance(batch, ContextBatch) else batch.chunks.input_ids.shape[1])
    assert sizes == set(checkpoint.config.trained_chunk_sizes) == {8, 16}


@pytest.mark.parametrize("name", ["reconstruct", "continue"])
def test_the_numbers_of_chunks_are_the_curriculums_few_first(checkpoint, name):
    source, vocab_size = source_of(checkpoint, name), checkpoint.decoder.vocab_size

    def counts(progress):
        batches = [draw(source, seed, progress) for seed in range(60)]
        per_example = [(batch.input_ids >= vocab_size).sum(1).tolist() for batch in batches]
        assert all(len(set(numbers)) == 1 for numbers in per_example)
        return [numbers[0] for numbers in per_example]

    first, last = counts(0.0), counts(0.999)
    assert set(first) | set(last) == {1, 2, 4}
    # Of 60 draws 34 are expected, and 39.
    assert first.count(1) > 30 > last.count(1)
    assert last.count(4) > 30 > first.count(4)


@pytest.fixture
def asked_passages(monkeypatch):
    """Return the number of passages of each context drawn, by the method that drew it."""
    counts = {"ask_many": [], "ask_among_rivals": []}
    for name, drawn in counts.items():
        original = getattr(ContextMaker, name)

        def record(maker, rng, num_passages, *rest, original=original, drawn=drawn):
            drawn.append(num_passages)
            return original(maker, rng, num_passages, *rest)

        monkeypatch.setattr(ContextMaker, name, record)
    return counts


@pytest.mark.parametrize("name", ["pretrain", "finetune", "plain finetune"])
def test_the_first_contexts_have_one_passage_and_later_ones_several(checkpoint, name, asked_passages):
    source = source_of(checkpoint, name)
    for seed in range(5):
        draw(source, seed, progress=0.2)
    assert {*asked_passages["ask_many"], *asked_passages["ask_among_rivals"]} == {1}
    asked_passages["ask_many"].clear()
    for seed in range(40):
        draw(source, seed, progress=0.99)
    assert set(asked_passages["ask_many"]) == {1, 2, 3, 4}


@pytest.mark.parametrize("most, counts", [(1, {1}), (3, {2, 3}), (9, {2, 3, 4})])
def test_pretraining_goes_on_over_a_few_rivals_alone(checkpoint, asked_passages, most, counts):
    settings = PRETRAIN.model_copy(update={"max_passages": most, "text_share": 0.0})
    source, _ = make_stage(checkpoint, settings)
    for seed in range(30):
        draw(source, seed, progress=0.5)
    assert asked_passages["ask_many"] == []
    assert set(asked_passages["ask_among_rivals"]) == counts


@pytest.mark.parametrize("name", ["pretrain", "finetune", "plain finetune"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rivals_have_their_share_of_the_contexts(checkpoint, asked_passages, name, share):
    settings = RUNS[name].model_copy(update={"rival_share": share, "text_share": 0.0})
    source, _ = make_stage(checkpoint, settings)
    for seed in range(60):
        draw(source, seed)
    rivals, others = len(asked_passages["ask_among_rivals"]), len(asked_passages["ask_many"])
    assert rivals / (rivals + others) == pytest.approx(share, abs=0.12)


@pytest.fixture
def asked_tasks(monkeypatch):
    """Return the tasks of all questions drawn, whether or not their passages hold the answer."""
    tasks = []
    original = ContextMaker.tokenise
    monkeypatch.setattr(
        ContextMaker, "tokenise", lambda *given: tasks.extend(one.task for one in given[3]) or original(*given)
    )
    return tasks


def test_pretraining_asks_for_single_facts_first_and_for_everything_later(checkpoint, asked_tasks):
    source = source_of(checkpoint, "pretrain")
    for progress, tasks in [(0.1, {"fact", "exact"}), (0.9, set(TASKS))]:
        asked_tasks.clear()
        for seed in range(30):
            draw(source, seed, progress)
        assert set(asked_tasks) - {"unanswerable"} <= tasks <= set(asked_tasks) | {"summary"}


@pytest.mark.parametrize("name", ["pretrain", "finetune", "plain finetune", "policy"])
@pytest.mark.parametrize("progress", [0.1, 0.9])
@pytest.mark.parametrize("tasks", [("yesno", "multihop"), ("summary",), ("comparison",), ("exact",)])
def test_a_run_asks_for_its_own_tasks_alone(checkpoint, asked_tasks, name, progress, tasks):
    settings = RUNS[name].model_copy(update={"tasks": tasks, "recital_share": 0.0, "text_share": 0.0})
    source, _ = make_stage(checkpoint, settings)
    for seed in range(5):
        draw(source, seed, progress)
    assert asked_tasks
    assert set(asked_tasks) <= set(tasks)


def test_each_window_is_to_be_given_back_from_its_own_chunks(checkpoint):
    batch = draw(source_of(checkpoint, "reconstruct"), 0)
    vocab_size = checkpoint.decoder.vocab_size
    for row, ids in enumerate(batch.input_ids):
        chunk_rows = ids[ids >= vocab_size] - vocab_size
        encoded = batch.chunks.input_ids[chunk_rows][batch.chunks.attention_mask[chunk_rows] > 0]
        assert encoded.tolist() == batch.labels[row][batch.weights[row] > 0].tolist()


def test_a_continuation_is_of_the_text_that_its_chunks_hold(checkpoint):
    """However many are expanded, prompt and continuation together are the window that the plain form shows."""
    batches = {name: draw(source_of(checkpoint, name), 1) for name in ("selective", "plain continue")}
    vocab_size = checkpoint.decoder.vocab_size
    selective, plain = batches["selective"], batches["plain continue"]
    num_chunks = len(selective.chunks.input_ids) // len(selective.input_ids)
    for row, ids in enumerate(selective.input_ids.tolist()):
        slots = ids[: int((selective.example_ids[row] >= 0).sum())]
        spelled = [
            token
            for id in slots
            for token in (selective.chunks.input_ids[id - vocab_size] if id >= vocab_size else [id])
        ]
        assert spelled == plain.input_ids[row].tolist()
        assert sum(id >= vocab_size for id in slots) in (num_chunks, num_chunks - expansion_budget(0.5, num_chunks))
        assert plain.labels[row][plain.weights[row] > 0].tolist() == spelled[-10:]


# Objectives


@EACH_RUN
def test_a_stage_trains_exactly_its_parts_and_all_of_them(checkpoint, name):
    source, objective = make_stage(checkpoint, RUNS[name])
    batch = draw(source, 0)
    if objective.needs_rollout:
        with torch.no_grad():
            batch = objective(batch, rollout_seed=0)
    objective(batch).loss.backward()
    assert trained_parts(checkpoint) == TRAINED[name]
    # Processes that share weights wait for every gradient that they expect.
    assert all(each.grad is not None for each in objective.parameters() if each.requires_grad)


def trained_parts(checkpoint):
    return {
        name
        for name, part in checkpoint.modules.items()
        if any(each.grad is not None and each.grad.any() for each in part.parameters())
    }


@pytest.mark.parametrize("name", ["plain continue", "plain finetune", "plain finetune with text"])
def test_the_plain_form_holds_the_decoder_alone_and_encodes_nothing(checkpoint, name):
    source, objective = make_stage(checkpoint, RUNS[name])
    batch = draw(source, 0)
    assert {place.split(".")[0] for place, _ in objective.named_parameters()} == {"decoder"}
    parts = [part for part in (questions_of(batch), getattr(batch, "text", None)) if part is not None]
    assert len(parts) == 1 + name.endswith("with text")
    for part in parts:
        assert part.chunks is None
        assert (part.input_ids < checkpoint.decoder.vocab_size).all()


@pytest.mark.parametrize("form", ["plain", "dense", "served"])
def test_every_form_of_fine_tuning_has_the_answers_in_its_loss_and_reaches_every_part(
    checkpoint, contexts, batch, form, monkeypatch
):
    predicted = []
    monkeypatch.setattr(finetune, "predict", lambda *given: predicted.append(given[1]) or predict(*given))
    objective = Finetuning(checkpoint, FINETUNE)
    objective.form_shares = tuple(float(form == one) for one in ("plain", "dense", "served"))
    objective(FinetuneBatch(batch)).loss.backward()
    (mixed,) = predicted
    assert torch.equal(mixed.weights, mixed.is_answer.float())
    answers = [question.answer_ids for context in contexts for question in context.questions]
    assert mixed.labels[mixed.is_answer].tolist() == [token for answer in answers for token in answer]
    assert all(each.grad is not None for each in objective.parameters())


def test_plain_fine_tuning_has_the_answers_alone_in_its_loss(checkpoint):
    batch = questions_of(draw(source_of(checkpoint, "plain finetune"), 0))
    assert torch.equal(batch.weights, batch.is_answer.float())
    assert batch.is_answer.any()


@pytest.mark.parametrize("name", ["finetune with text", "plain finetune with text"])
def test_replayed_text_adds_its_own_loss_to_that_of_the_questions(checkpoint, name):
    source, objective = make_stage(checkpoint, RUNS[name])
    batch = draw(source, 0)
    alone, together = objective(FinetuneBatch(batch.questions)), objective(batch)
    assert together.loss.item() == pytest.approx(alone.loss.item() + together.figures["text_loss"], rel=1e-5)
    assert together.figures["text_loss"] > 0


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_text_goes_with_its_share_of_the_batches(checkpoint, share):
    replay = REPLAY.model_copy(update={"share": share})
    source, _ = make_stage(checkpoint, FINETUNE.model_copy(update={"replay": replay}))
    with_text = sum(draw(source, seed, progress=seed / 60).text is not None for seed in range(60))
    assert share == with_text == 0 or 0.6 * share < with_text / 60 < 1.4 * share


def test_all_batches_of_a_step_have_text_or_none_has(checkpoint):
    replay = REPLAY.model_copy(update={"share": 0.5})
    source, _ = make_stage(checkpoint, FINETUNE.model_copy(update={"replay": replay}))
    steps = [{draw(source, seed, progress=step / 12).text is None for seed in range(4)} for step in range(12)]
    assert {len(kinds) for kinds in steps} == {1} and set.union(*steps) == {True, False}


def test_text_without_a_compressed_chunk_reaches_every_part_all_the_same(checkpoint):
    source, objective = make_stage(checkpoint, CONTINUE.model_copy(update={"expand_fractions": [1.0]}))
    batch = draw(source, 0)
    assert (batch.input_ids < checkpoint.decoder.vocab_size).all()
    objective(batch).loss.backward()
    assert all(each.grad is not None for each in objective.parameters())


def test_pretraining_weighs_an_answer_more_than_its_question_and_its_context(checkpoint):
    source = source_of(checkpoint, "pretrain")
    source.settings = source.settings.model_copy(update={"text_share": 0.0})
    batch = draw(source, 0)
    assert set(batch.weights[batch.is_answer].tolist()) == {pretrain.ANSWER_WEIGHT}
    rest = batch.weights[~batch.is_answer & (batch.weights > 0)]
    assert rest.tolist() == pytest.approx([pretrain.CONTEXT_WEIGHT] * len(rest))


def test_a_recital_is_a_string_twice_of_which_the_second_counts(checkpoint):
    source = source_of(checkpoint, "pretrain on text")
    source.settings = source.settings.model_copy(update={"recital_share": 1.0})
    batch = draw(source, 0)
    for row, labels, weights in zip(batch.input_ids, batch.labels, batch.weights, strict=True):
        again = labels[weights > 0]
        assert len(again) == pretrain.RECITAL_TOKENS
        assert torch.equal(row[1 : 1 + len(again)], again)


@pytest.fixture
def asked_from_files(tmp_path):
    """Settings that take questions from a file of two rows, one of which has no answer."""
    rows = [ROW, {**ROW, "id": "q2", "question": "Who rebuilt it?", "answers": [], "answerable": False, "gold": []}]
    rows += [{**ROW, "id": "q3", "question": "What is sold?", "answers": ["honey"], "passages": ["bees"], "gold": [0]}]
    return Questions(files=[QuestionFile(path=str(write_rows(tmp_path, rows)))], answerless_share=0.5)


@pytest.mark.parametrize("name", ["finetune", "plain finetune", "policy"])
def test_questions_come_from_files_where_the_run_names_some(checkpoint, asked_from_files, name):
    run = RUNS[name].model_copy(update={"questions": asked_from_files})
    source, objective = make_stage(checkpoint, run)
    batch = draw(source, 0)
    loss, _ = objective(objective(batch, rollout_seed=0) if name == "policy" else batch)
    assert torch.isfinite(loss)
    if name != "plain finetune":
        texts = {question.text for context in questions_of(batch).contexts for question in context.questions}
        assert texts <= {"Who built the bridge?", "Who rebuilt it?", "What is sold?"} and len(texts) > 1


@pytest.fixture
def long_row(tmp_path):
    """Settings that take a question from a file, over passages of several times a hundred tokens."""
    passages = [{"id": str(number), "text": "The mill of Harrow burned down in 1911. " * 20} for number in range(2)]
    row = {**ROW, "passages": ["0", "1"], "gold": []}
    path = write_rows(tmp_path, [row])
    write_lines(tmp_path / "passages.jsonl.gz", passages)
    return Questions(files=[QuestionFile(path=str(path))], answerless_share=0.0)


@pytest.mark.parametrize("name", ["pretrain", "plain finetune"])
def test_contexts_are_read_in_full_up_to_the_window(checkpoint, name):
    """Six questions of a context leave it some hundred slots of these."""
    window = 300
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, max_prompt_slots=window))
    source, lengths = source_of(checkpoint, name), []
    for seed in range(5):
        batch = questions_of(draw(source, seed))
        lengths += batch.example_ids[batch.example_ids >= 0].unique(return_counts=True)[1].tolist()
    # Chunks of the tests' pair have at most sixteen tokens.
    assert window - 16 < max(lengths) <= window


@pytest.mark.parametrize(
    "name, form", [("finetune", "dense"), ("finetune", "served"), ("gains", None), ("policy", None)]
)
def test_compressed_contexts_are_read_up_to_the_window(checkpoint, long_row, name, form, monkeypatch):
    window, read = 60, []
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, max_prompt_slots=window))
    for module in (finetune, rewards):
        monkeypatch.setattr(module, "predict", lambda *given: read.append(given[1]) or predict(*given))
    source, objective = make_stage(checkpoint, RUNS[name].model_copy(update={"questions": long_row}))
    if form is None:
        objective(draw(source, 0), rollout_seed=0)
    else:
        objective.form_shares = tuple(float(form == one) for one in ("plain", "dense", "served"))
        objective(draw(source, 0))
    assert [batch.input_ids.shape[1] for batch in read] == [window]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"passages": [], "gold": []}, "has no passages"),
        ({"answers": None}, "has no answers"),
        ({"question": "Who built the bridge? " * 5000}, r"needs \d+ slots for its question and answer alone"),
        ({"answers": ["Ana Korvin " * 5000]}, r"needs \d+ slots for its question and answer alone"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(tmp_path, tiny_checkpoint, change, named):
    row = {key: value for key, value in {**ROW, **change}.items() if value is not None}
    questions = Questions(files=[QuestionFile(path=str(write_rows(tmp_path, [row])))])
    with pytest.raises(TrainingError, match=f"row 'q1' {named}"):
        RowSource(questions, tiny_checkpoint.chunker)


def test_no_answerless_question_has_its_answer_in_its_passages(tmp_path, tiny_checkpoint):
    """One row alone has no stranger, and two over one passage are none to each other."""
    rows = [ROW, {**ROW, "id": "q2", "question": "Which river?", "answers": ["Lurd"]}]
    settings = Questions(files=[QuestionFile(path=str(write_rows(tmp_path, rows)))], answerless_share=1.0)
    source = RowSource(settings, tiny_checkpoint.chunker)
    contexts = source.draw(random.Random(0), tiny_checkpoint.chunker, 2, num_tokens=500)
    assert {context.questions[0].answer for context in contexts} == {"Ana Korvin", "Lurd"}


def test_what_is_asked_of_a_document_is_never_asked_of_another(tmp_path, tiny_checkpoint):
    """Any document can be summarised: to refuse another's would be the wrong lesson."""
    summary = {"task": "summary", "question": "What is it about?", "gold": None}
    rows = [
        {**ROW, **summary, "answers": ["A bridge and its builder"], "passages": ["ferry", "bridge"]},
        {**ROW, **summary, "id": "q2", "answers": ["Things that Harrow had"], "passages": ["mill", "bees"]},
    ]
    settings = Questions(files=[QuestionFile(path=str(write_rows(tmp_path, rows)))], answerless_share=1.0)
    source = RowSource(settings, tiny_checkpoint.chunker)
    contexts = source.draw(random.Random(0), tiny_checkpoint.chunker, 2, num_tokens=500)
    assert {context.questions[0].answer for context in contexts} == {row["answers"][0] for row in rows}


def test_recovery_reads_tokens_back_at_their_places(checkpoint):
    source, objective = make_stage(checkpoint, RECOVER)
    batch = draw(source, 0)
    assert minimise(objective, batch, num_steps=120, learning_rate=1e-2)[-1]["accuracy"] > 0.9
    shifted = replace(batch, token_ids=batch.token_ids.roll(1, 0))
    assert objective(shifted).figures["accuracy"] < 0.5


def test_recovery_weighs_a_token_the_less_the_more_often_a_batch_has_it():
    tokens = torch.tensor([7, 7, 7, 7, 2])
    assert recover.rarity(tokens, 0.5).tolist() == [0.5] * 4 + [1.0]
    assert recover.rarity(tokens, 0.0).tolist() == [1.0] * 5


def test_before_recovery_the_projector_gives_each_chunk_about_the_mean_of_its_tokens(checkpoint):
    chunks = recover.first_chunks(checkpoint, RECOVER)
    batch = encoder_batch(checkpoint.chunker, chunks)

    def likeness():
        table = checkpoint.decoder.token_embeddings.weight
        means = torch.stack([table[torch.tensor(chunk.token_ids)].mean(0) for chunk in chunks])
        embeddings = checkpoint.projector(encode(checkpoint.encoder, batch))
        apart = [each - each.mean(0) for each in (means, embeddings)]
        return functional.cosine_similarity(*apart).mean()

    with torch.no_grad():
        assert likeness() < 0.3
        fit_projector(checkpoint, chunks)
        assert likeness() > 0.5


def test_selection_learns_which_chunks_are_labelled(checkpoint):
    source, objective = make_stage(checkpoint, RUNS["select"])
    batch = draw(source, 0)
    figures = minimise(objective, batch, num_steps=60, learning_rate=3e-3)
    assert figures[-1]["recall"] > max(0.5, 2 * figures[0]["recall"])


def served(checkpoint, contexts, logits, monkeypatch, labelled=0.0, whole_budget=1.0, fraction=0.2):
    """Return the examples of every question, with all or none drawn as labelled or at the whole budget."""
    monkeypatch.setattr(finetune, "WHOLE_BUDGET_SHARE", whole_budget)
    settings = {"expand_fractions": [fraction], "labelled_share": labelled}
    objective = Finetuning(checkpoint, FINETUNE.model_copy(update=settings))
    examples = objective.each_question_as_served(random.Random(0), contexts, logits)
    questions = [(context, question) for context in contexts for question in context.questions]
    assert [example.chunks for example in examples] == [context.chunks for context, _ in questions]
    assert [example.segments[1].token_ids for example in examples] == [question.answer_ids for _, question in questions]
    return list(zip(examples, questions, strict=True))


@pytest.fixture
def logits(batch):
    logits = torch.randn(batch.policy.passages.shape, generator=torch.Generator().manual_seed(0))
    return logits.masked_fill(batch.policy.passages < 0, float("-inf"))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_a_question_as_served_has_the_policys_picks_expanded(checkpoint, contexts, logits, fraction, monkeypatch):
    pairs = served(checkpoint, contexts, logits, monkeypatch, fraction=fraction)
    for row, (example, (context, _)) in enumerate(pairs):
        budget = expansion_budget(fraction, len(context.chunks))
        assert example.expanded == set(logits[row].topk(budget).indices.tolist())


def test_a_confident_policy_stops_short_of_its_budget_as_it_does_in_serving(checkpoint, contexts, logits, monkeypatch):
    sharp = logits * 10
    pairs = served(checkpoint, contexts, sharp, monkeypatch, whole_budget=0.0, fraction=0.9)
    for row, (example, (context, _)) in enumerate(pairs):
        present = sharp[row, : len(context.chunks)]
        picks = pick_in_turn(present, expansion_budget(0.9, len(present)), checkpoint.config.policy_confidence)
        assert example.expanded == set(picks)
        assert len(picks) < 0.5 * len(present)


def test_labelled_examples_hold_the_evidence_and_at_most_two_chunks_more(checkpoint, contexts, logits, monkeypatch):
    for example, (_, question) in served(checkpoint, contexts, logits, monkeypatch, labelled=1.0):
        evidence = set(question.evidence_chunks)
        assert evidence <= example.expanded
        assert len(example.expanded - evidence) <= 2


def test_all_questions_at_once_share_a_sequence_and_its_random_chunks(checkpoint, contexts):
    objective = Finetuning(checkpoint, FINETUNE)
    numbers = set()
    for seed in range(30):
        examples = objective.all_questions_at_once(random.Random(seed), contexts)
        for example, context in zip(examples, contexts, strict=True):
            asked = [question.answer_ids for question in context.questions]
            assert [segment.token_ids for segment in example.segments if segment.is_answer] == asked
            numbers.add(len(example.expanded) / len(context.chunks))
    assert 0.0 in numbers and 0.1 < max(numbers) <= 0.2


def test_the_selection_loss_is_that_of_each_question_alone(batch, logits):
    losses, found, num_evidence = [], 0, 0
    for row, passages, evidence in zip(logits, batch.policy.passages, batch.policy.evidence, strict=True):
        scores = row[passages >= 0].log_softmax(0)
        wanted = evidence.nonzero().flatten().tolist()
        picks = scores.topk(max(1, expansion_budget(selection.RECALL_FRACTION, len(scores)))).indices.tolist()
        if wanted:
            losses.append(-sum(scores[number] for number in wanted) / len(wanted))
        found += len(set(picks) & set(wanted))
        num_evidence += len(wanted)
    loss, recall = selection_loss(logits, batch.policy)
    assert loss.item() == pytest.approx(float(sum(losses) / len(losses)), rel=1e-5)
    assert recall == pytest.approx(found / num_evidence)


def test_questions_without_evidence_cost_the_policy_nothing(batch, logits):
    unanswerable = replace(batch.policy, evidence=torch.zeros_like(batch.policy.evidence))
    loss, recall = selection_loss(logits.requires_grad_(), unanswerable)
    loss.backward()
    assert loss.item() == recall == 0.0
    assert not logits.grad.any()


# Predictions


@pytest.fixture
def examples(checkpoint):
    """Prompts, each with what the decoder itself says next, and the same again with the last token another."""
    rng = random.Random(0)
    pairs = []
    for length in (3, 5, 8):
        prompt = [rng.randrange(3, 500) for _ in range(length)]
        answer = greedy(checkpoint.decoder, [BOS_ID, *prompt], num_tokens=4)
        wrong = [*answer[:-1], 3 + (answer[-1] == 3)]
        pairs += [MixedExample([], [], [Segment(prompt, 0.0), Segment(each, 1.0, True)]) for each in (answer, wrong)]
    return pairs


@torch.no_grad()
def greedy(decoder, ids, num_tokens):
    for _ in range(num_tokens):
        ids = [*ids, int(decoder.backbone(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-num_tokens:]


@torch.no_grad()
def prediction_of(checkpoint, examples):
    return predict(checkpoint.decoder, collate_mixed(examples, checkpoint.decoder.vocab_size, [BOS_ID]))


def test_an_example_is_all_right_where_greedy_decoding_would_give_its_answer(checkpoint, examples):
    prediction = prediction_of(checkpoint, examples)
    assert prediction.all_right_per_example(len(examples)).tolist() == [True, False] * 3
    assert prediction.accuracy == pytest.approx(21 / 24)


@torch.no_grad()
def test_the_mean_loss_of_each_example_is_that_of_the_decoder_alone(checkpoint, examples):
    means = []
    for example in examples:
        prompt, answer = (list(segment.token_ids) for segment in example.segments)
        log_probabilities = checkpoint.decoder.backbone(
            input_ids=torch.tensor([[BOS_ID, *prompt, *answer]])
        ).logits.log_softmax(-1)
        places = range(len(prompt), len(prompt) + len(answer))
        means.append(
            -sum(log_probabilities[0, at, token] for at, token in zip(places, answer, strict=True)) / len(answer)
        )
    ours = prediction_of(checkpoint, examples).mean_loss_per_example(len(examples))
    torch.testing.assert_close(ours, torch.stack(means))


def test_the_loss_weighs_tokens_and_accuracy_counts_answers_where_there_are_any(checkpoint, examples):
    texts = [MixedExample([], [], [Segment(example.segments[0].token_ids, 0.5)]) for example in examples]
    text, both = prediction_of(checkpoint, texts), prediction_of(checkpoint, texts + examples)
    answers = prediction_of(checkpoint, examples)
    expected = (0.5 * text.losses.sum() + answers.losses.sum()) / (0.5 * len(text.losses) + len(answers.losses))
    assert both.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert both.accuracy == answers.accuracy
    assert text.accuracy == text.is_right.float().mean()
