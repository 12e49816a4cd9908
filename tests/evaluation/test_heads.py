"""`refrag heads find` keeps heads that look at the evidence, and stores them where the server reads them."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from question_files import write_lines

from refrag.data.contexts import ContextMaker
from refrag.errors import InvalidRequest
from refrag.evaluation.heads.find import MOST_HEADS, chance_of, find_by_head, find_heads, finds, rank_heads
from refrag.evaluation.heads.readings import SHARES, Reading
from refrag.evaluation.heads.report import render, search
from refrag.model.attention_heads import HEADS_FILE, AttentionHeads, Scoring
from refrag.model.checkpoint import load_checkpoint
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request
from refrag_client.cli.main import main

WORLD = Path(__file__).parents[2] / "checkpoints" / "world"
NUM_HEADS, NUM_CHUNKS = 40, 60
HEADS = AttentionHeads(
    tuple((number // 8, number % 8) for number in range(NUM_HEADS)), (1.0,) * NUM_HEADS, digest="of the test"
)


def draw_readings(count, strengths, similar=0.0, num_evidence=1):
    """Readings in which the heads with a strength give the evidence so much more than others; `similar`: the cosine."""
    rng = np.random.default_rng(0)
    readings = []
    for _ in range(count):
        scores, similarities = rng.standard_normal((NUM_HEADS, NUM_CHUNKS)), rng.standard_normal(NUM_CHUNKS)
        evidence = rng.choice(NUM_CHUNKS, num_evidence, replace=False)
        for head, strength in strengths.items():
            scores[head, evidence] += strength
        similarities[evidence] += similar
        passages = np.arange(NUM_CHUNKS) // 6
        readings.append(Reading(scores.astype(np.float16), passages, similarities, evidence.tolist()))
    return readings


def test_heads_that_find_the_evidence_are_kept_the_best_of_them_first():
    assert rank_heads(draw_readings(200, {7: 2.0, 21: 4.0, 30: 3.0})).tolist() == [21, 30, 7]


def test_a_head_that_is_lucky_in_one_half_of_the_rows_is_not_kept():
    half = draw_readings(200, {5: 5.0})[::2], draw_readings(200, {})[1::2]
    mixed = [reading for pair in zip(*half, strict=True) for reading in pair]
    assert rank_heads(mixed).tolist() == []


def test_evidence_of_several_chunks_is_found_by_chance_more_often():
    readings = draw_readings(500, {}, num_evidence=3)
    by_chance = np.mean([find_by_head(reading) for reading in readings])
    assert chance_of(readings[0]) == pytest.approx(by_chance, abs=0.02)
    assert chance_of(readings[0]) == pytest.approx(1 - 54 * 53 * 52 / (60 * 59 * 58))
    assert rank_heads(readings).tolist() == []


def test_no_more_heads_are_kept_than_are_of_use():
    found = find_heads(draw_readings(200, dict.fromkeys(range(NUM_HEADS), 2.0)), HEADS, "of these")
    assert len(found.heads) == MOST_HEADS
    assert found.digest == "of these"
    assert list(found.heads) == sorted(found.heads)


def test_similarity_counts_where_it_knows_better():
    by_heads = find_heads(draw_readings(300, {3: 6.0, 9: 6.0}), HEADS, "")
    by_cosine = find_heads(draw_readings(300, {3: 2.0}, similar=6.0), HEADS, "")
    assert by_heads.scoring.similarity < by_cosine.scoring.similarity


def test_the_scores_of_chosen_heads_find_what_no_single_one_finds():
    readings = draw_readings(300, dict.fromkeys(range(12), 1.0))
    scoring = Scoring(neighbours=0.0, passage=0.0, similarity=0.0)
    together = finds(readings, np.arange(12), scoring, 0.1).mean()
    assert together > finds(readings, np.array([0]), scoring, 0.1).mean() + 0.2


def test_too_few_rows_and_heads_that_see_nothing_are_refused():
    with pytest.raises(InvalidRequest, match=r"19 rows have known evidence.*at least 20"):
        find_heads(draw_readings(19, {3: 6.0}), HEADS, "")
    with pytest.raises(InvalidRequest, match="no head finds the evidence more often than chance"):
        find_heads(draw_readings(100, {}), HEADS, "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a copy of the world's checkpoint, and a file of questions over its passages."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(WORLD, folder / "checkpoint")
    rng = random.Random("heads")
    maker = ContextMaker.draw(rng, load_checkpoint(WORLD).chunker, "heldout")
    asked = [maker.ask_one(rng, "fact", 12) for _ in range(120)]
    texts = {text: f"p{number}" for number, text in enumerate(dict.fromkeys(t for one in asked for t in one.passages))}
    write_lines(folder / "passages.jsonl", [{"id": name, "title": "", "text": text} for text, name in texts.items()])
    write_lines(
        folder / "rows.jsonl",
        [
            {
                "id": f"q{number}",
                "question": one.questions[0].text,
                "answers": [one.questions[0].answer],
                "passages": [texts[text] for text in one.passages],
            }
            for number, one in enumerate(asked)
        ],
    )
    return folder


def find(folder, *more):
    options = ["--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "rows.jsonl"), "--num-passages", "12"]
    return main(["heads", "find", *options, "--num-rows", "120", "--num-held-out", "20", *more])


def test_the_command_finds_heads_that_the_pipeline_then_reads(world, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert find(world, "--report", str(report), "--dry-run") == 0
    assert not (world / "checkpoint" / HEADS_FILE).exists()
    assert find(world) == 0
    values = json.loads(report.read_text())
    assert render(values) in capsys.readouterr().out
    for policy in ("attention", "similarity", "neighbourhood", "learned", "random"):
        by_share = [values["recall"][policy][f"{share:g}"]["value"] for share in SHARES]
        assert by_share == sorted(by_share), "a larger budget cannot find less"
    assert values["recall"]["attention"]["0.2"]["value"] > values["recall"]["random"]["0.2"]["value"]
    pipeline = Pipeline(load_checkpoint(world / "checkpoint"))
    assert [list(head) for head in pipeline.heads.heads] == values["heads"]
    assert pipeline.heads.provenance["num_rows"] == values["num_rows"]
    request = Request("Which animal?", ["Mara Tolen keeps a parrot."] * 9, ExpansionOptions(0.3, "attention"))
    assert len(pipeline.answer(request).expanded) == 2


def test_rows_that_are_all_held_out_leave_none_to_learn_from(world):
    with pytest.raises(InvalidRequest, match="num_held_out is 60 of 60 rows"):
        search(world / "checkpoint", list(range(60)), 60, 10, 0)
