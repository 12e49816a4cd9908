"""The benchmark of collections: its passages, its stages, and its tables."""

import random

import pytest

from perf.retrieval import PHASES, STAGES, draw_passages, draw_questions, markdown, stage_seconds
from perf.stages import Reading


def reading(seconds, ttft, queue, count):
    models = {model: dict.fromkeys(PHASES, seconds) for model in STAGES.values()}
    return Reading(models, {"ttft": (ttft, count), "queue": (queue, count)})


def test_stages_are_means_and_the_rest_makes_them_whole():
    stages = stage_seconds(reading(0.0, 1.0, 1.0, 3), reading(0.5, 9.0, 3.0, 5), ttft=20.0, count=2)
    assert stages["retrieve"] == stages["project"] == 1.0
    assert stages["prefill"] == 3.0
    assert sum(stages.values()) == pytest.approx(20.0)


def test_passages_are_drawn_alike_each_time_and_questions_are_parts_of_them():
    passages = draw_passages(None, 20, 40, random.Random(0))
    assert passages == draw_passages(None, 20, 40, random.Random(0)) and len(set(passages)) == 20
    for question in draw_questions(passages, 5, random.Random(1)):
        assert any(question in " ".join(passage.split()) for passage in passages)


def test_the_report_is_three_tables_and_their_source():
    times = {"p50_ms": 8.2, "p95_ms": 9.0, "p99_ms": 11.7, "n": 20}
    stages = {"retrieve": 9.0, "prefill": 20.0, "rest": 1.0}
    report = {
        "command": "python -m perf.retrieval",
        "machine": "a machine",
        "commit": "abc",
        "index": {
            "num_passages": 1000,
            "num_chunks": 8000,
            "passages_per_second": 12.3,
            "collection_bytes_per_passage": 4000,
            "store_bytes_per_passage": 5000,
        },
        "search": [{"mode": "hybrid", "callers": 8, "searches_per_second": 40.0, **times}],
        "breakdown": [
            {"num_passages": 8, "way": "plain", "ttft": times, "speedup": 1.0, "stages_ms": stages},
            {"num_passages": 8, "way": "compressed", "ttft": times, "speedup": 2.5, "stages_ms": stages},
        ],
    }
    text = markdown(report)
    assert "1,000 passages of 8.0 chunks: 12 passages/s; 4,000 bytes a passage in the collection" in text
    assert "8 ms" in text and "12 ms" in text and "2.5×" in text
    assert text.endswith("`python -m perf.retrieval` on a machine, commit abc.")
