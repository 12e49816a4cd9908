"""Estimates of what presets bring beside plain pairs: adapters, chat templates, and questions from files."""

import random

import pytest
import torch
from question_files import write_lines
from tiny import CHAT, tiny_pair

from refrag.training.estimate import Hardware, build_on_meta, count_parameters, estimate, estimate_run
from refrag.training.pair import make_pair
from refrag.training.pair_settings import Adapter
from refrag.training.preset_file import PRESETS, load_preset
from refrag.training.recipe import make_objective, make_source
from refrag.training.settings import Finetune, QuestionFile, Questions
from refrag.training.shapes import batch_shapes
from refrag.training.stages.questions import TOKENS_PER_PASSAGE

STEP = {"num_steps": 10, "learning_rate": 1e-3}


def finetune(**settings):
    return Finetune(stage="finetune", optimisation=STEP, tokens_per_step=2048, **settings)


def with_adapters(pair):
    adapter = Adapter(rank=4, alpha=8, dropout=0.1)
    parts = {name: getattr(pair, name).model_copy(update={"adapter": adapter}) for name in ("decoder", "encoder")}
    return pair.model_copy(update=parts)


# Of teach nothing is known before it has a checkpoint to start from.
@pytest.mark.parametrize("name", sorted({path.stem for path in PRESETS.glob("*.yaml")} - {"teach"}))
def test_every_shipped_preset_is_estimated(name):
    preset = load_preset(name)
    found = estimate(preset, Hardware())
    assert [run.name for run in found] == list(preset.runs)
    assert all(run.trained_parameters > 0 and run.memory["activations"] > 0 and run.hours > 0 for run in found)


@pytest.mark.parametrize("form", ["mixed", "plain"])
def test_of_a_pair_with_adapters_the_same_trains_as_in_training(form):
    pair, run = with_adapters(tiny_pair()), finetune(form=form)
    real, foreseen = (make_objective(checkpoint, run) for checkpoint in (make_pair(pair), build_on_meta(pair)))
    assert all(parameter.device == torch.device("meta") for parameter in foreseen.parameters())
    for trained in (False, True):
        assert count_parameters(foreseen, trained) == count_parameters(real, trained)


def test_adapters_need_less_memory_than_whole_backbones():
    whole, adapted = (
        estimate_run(pair, "finetune", finetune(), Hardware()) for pair in (tiny_pair(), with_adapters(tiny_pair()))
    )
    assert adapted.trained_parameters < whole.trained_parameters
    for name in ("gradients", "optimizer"):
        assert adapted.memory[name] < whole.memory[name]


def test_a_chat_is_estimated_as_its_pair_without_one():
    plain, chat = (
        estimate_run(pair, "finetune", finetune(), Hardware()) for pair in (tiny_pair(), tiny_pair(template=CHAT))
    )
    assert chat == plain


@pytest.fixture
def questions(tiny_checkpoint, tmp_path):
    """Questions from a file whose passages are as long as those of the made-up world."""
    sentence = "The mill of Harrow burned down in 1911. "
    times = round(TOKENS_PER_PASSAGE / len(tiny_checkpoint.chunker.passage_ids(sentence)))
    passages = [{"id": str(number), "title": "", "text": f"{number}. {times * sentence}"} for number in range(4)]
    write_lines(tmp_path / "passages.jsonl", passages)
    row = {
        "id": "q",
        "question": "When did the mill of Harrow burn down, as far as anybody knows?",
        "answers": ["1911"],
    }
    path = write_lines(tmp_path / "rows.jsonl", [{**row, "passages": ["0", "1", "2", "3"], "gold": [0]}])
    return Questions(files=[QuestionFile(path=str(path))])


def test_contexts_of_files_have_one_question_each_and_are_as_many_as_foreseen(tiny_checkpoint, questions):
    run = finetune(form="plain", questions=questions, max_passages=2)
    source, num_draws = make_source(tiny_checkpoint, run), 12
    drawn = [source.draw(random.Random(seed), progress=1.0).questions for seed in range(num_draws)]
    num_rows = sum(len(batch.input_ids) for batch in drawn) / num_draws
    foreseen = batch_shapes(tiny_pair(), run)
    assert sum(batch.share for batch in foreseen) == pytest.approx(1)
    assert sum(batch.share * batch.rows for batch in foreseen) == pytest.approx(num_rows, rel=0.25)
