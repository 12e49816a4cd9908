"""A page of results has every benchmark's tables and plots; two results are compared number by number."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from table_text import unaligned

from perf import plots, report
from perf.results import median_ratio, summarise
from refrag.reporting import table

COMMITTED = Path(report.__file__).with_name("results")
TIMES = {"p50_ms": 40.0, "p95_ms": 50.0, "p99_ms": 60.0, "n": 3}
RUN = {"command": "python -m perf", "machine": "a machine", "commit": "abc"}
STAGES = {"client, gRPC": 4.0, "preprocessing": 9.0, "decoder": 50.0}


def ttft_row(store, fraction, num_tokens=8192, **more):
    place = {"chunk_size": 16, "encoder": "fp32", "context_tokens": num_tokens, "store": store}
    return {**place, "expand_fraction": fraction, "prompt_slots": 600, "ttft": TIMES, "stages_ms": STAGES, **more}


def way(throughput):
    models = {name: {"queue": 1.0, "compute": 2.0} for name in ("preprocessing", "decoder")}
    return {"throughput": throughput, "ttft": TIMES, "inter_token": TIMES, "total": TIMES, "models_ms": models}


RESULTS = {
    "ttft": {
        **RUN,
        "decoder_width": 192,
        "rows": [
            row
            for num_tokens in (512, 8192)
            for row in (
                ttft_row("plain", 1.0, num_tokens),
                ttft_row("cold", 0.0, num_tokens, speedup=8.5, analytic=70.0),
                ttft_row("warm", 0.0, num_tokens, speedup=22.0, analytic=70.0, bare=TIMES, against_bare=1.25),
            )
        ],
    },
    "load": {
        **RUN,
        "context_tokens": 4096,
        "answer_tokens": 16,
        "rows": [{"load": "4 at a time", "compressed": way(8.0), "plain": way(1.0), "speedup": 8.0}],
    },
    "peers": {
        **RUN,
        "answer_tokens": 32,
        "expand_fraction": 0.1,
        "rows": [
            {
                "context_tokens": 4096,
                **{name: dict.fromkeys(("generate", "plain", "compressed"), TIMES) for name in ("ttft", "total")},
                "ttft_against_generate": {"plain": 0.9, "compressed": 6.0},
                "ttft_against_generate_range": {"plain": [0.8, 1.0], "compressed": [5.5, 6.5]},
                "total_against_generate": {"plain": 0.9, "compressed": 3.0},
                "total_against_generate_range": {"plain": [0.8, 1.0], "compressed": [2.5, 3.5]},
            }
        ],
        "callers": [
            {
                "callers": callers,
                "context_tokens": 1024,
                "tokens_per_second": {"plain": rate, "compressed": rate},
                "tokens_per_second_range": {"plain": [rate, rate], "compressed": [rate, rate]},
            }
            for callers, rate in ((1, 30.0), (8, 90.5))
        ],
    },
    "scale": {
        **RUN,
        "start_s": 9.0,
        "idle_mib": 1400.0,
        "passages": [
            {"passages": n, "context_tokens": 90 * n, "prompt_slots": 8 * n, "ttft": TIMES, "ms_per_slot": 0.2}
            for n in (1, 64)
        ],
        "callers": [{"callers": n, "throughput": 5.0 * n, "ttft": TIMES, "memory_mib": 1500.0} for n in (1, 4)],
        "requests": {
            "before": 20,
            "requests": 100,
            "throughput": 50.0,
            "before_mib": 1500.0,
            "after_mib": 1515.0,
            "growth": 0.01,
        },
    },
}


@pytest.fixture
def folder(tmp_path):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def test_every_committed_result_has_its_section():
    sections = {section.name for section, _ in report.read_results(COMMITTED)}
    assert {path.stem for path in COMMITTED.glob("*.json")} - {"demo"} == sections
    assert all(section.title in report.markdown_page(COMMITTED) for section, _ in report.read_results(COMMITTED))


def test_the_page_needs_nothing_besides_itself(folder):
    page = report.html_page(folder)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == sum(len(section.figures) for section, _ in report.read_results(folder))
    assert all(b"</svg>" in base64.b64decode(image) for image in images)
    assert page.count("<table>") == page.count("</table>") >= len(RESULTS)


@pytest.mark.parametrize("section", report.SECTIONS, ids=lambda one: one.name)
def test_every_plot_names_its_axes_and_its_baseline(section):
    result = RESULTS.get(section.name) or json.loads((COMMITTED / f"{section.name}.json").read_text())
    for draw in section.figures:
        figure = draw(result)
        [legend] = figure.legends or [axes.get_legend() for axes in figure.axes]
        labels = [text.get_text() for text in [*legend.get_texts(), *figure.axes[0].get_yticklabels()]]
        assert all(axes.get_xlabel() for axes in figure.axes)
        assert any(word in " ".join(labels) for word in ("plain", "generate", "proportion", "at a time", "as fast"))


def test_each_chunk_size_has_a_panel_of_its_own_with_plain_in_it():
    figure = plots.ttft(json.loads((COMMITTED / "ttft.json").read_text()))
    assert [axes.get_title() for axes in figure.axes] == ["k = 8", "k = 16", "k = 32"]
    assert all("plain" in axes.get_legend_handles_labels()[1] for axes in figure.axes)


def test_the_tables_tell_what_was_measured(folder):
    page = unaligned(report.markdown_page(folder))
    assert "| 8,192 | 16 | warm, p=0 | 600 | 40 ms | 50 ms | 22.0× | 70.0× | 1.25× |" in page
    assert "| 4 at a time | 8.00 | 1.00 | 8.0× |" in page
    assert "| 4,096 | generate | 40 ms | | 40 ms | |" in page
    assert "| 4,096 | compressed | 40 ms | 6.0× (5.5–6.5) | 40 ms | 3.0× (2.5–3.5) |" in page
    assert "| plain | 30.0 (30.0–30.0) | 90.5 (90.5–90.5) |" in page
    assert "1,515 MiB, 1,500 MiB before them: +1.0%" in page


def test_two_results_are_compared_by_what_they_measured():
    after = json.loads(json.dumps(RESULTS["ttft"]))
    after["rows"][-1]["ttft"]["p50_ms"] = 20.0
    text = unaligned(report.compare(RESULTS["ttft"], after))
    name = "rows (context_tokens 8192, chunk_size 16, encoder fp32, store warm, expand_fraction 0.0) ttft p50_ms"
    assert f"| {name} | 40 | 20 | 0.50× |" in text


def test_no_part_of_a_result_is_left_out_of_a_comparison():
    text = unaligned(report.compare(RESULTS["scale"], RESULTS["scale"]))
    assert "| passages (context_tokens 5760, passages 64) ms_per_slot | 0.2 | 0.2 | 1.00× |" in text
    assert "| callers (callers 4) throughput | 20 | 20 | 1.00× |" in text


@pytest.mark.parametrize("path", sorted(COMMITTED.rglob("*.json")), ids=lambda path: str(path.relative_to(COMMITTED)))
def test_every_number_of_a_committed_result_has_a_name_of_its_own(path):
    result = json.loads(path.read_text())
    assert len(report.by_name(result)) == len(list(report.flatten(result))) > 0


def test_a_number_that_would_be_lost_to_another_of_its_name_is_told():
    rows = [{"colour": "red", "ms": 1.0}, {"colour": "blue", "ms": 2.0}]
    with pytest.raises(ValueError, match=r"two numbers are named 'rows \(\) ms'; add the key"):
        report.by_name({"rows": rows})


def test_ends_of_a_range_are_compared_by_their_order():
    text = unaligned(report.compare({**RUN, "range": [1.0, 1.0]}, {**RUN, "range": [2.0, 3.0]}))
    assert "| range (1) | 1 | 2 | 2.00× |" in text and "| range (2) | 1 | 3 | 3.00× |" in text


def test_a_page_of_another_kind_is_refused(folder):
    command = [sys.executable, "-m", "perf.report", "page", str(folder), "--output", str(folder / "report.pdf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "must end in .html or .md" in done.stderr


def test_a_summary_is_in_milliseconds():
    assert summarise([0.1, 0.2, 0.3]) == {"p50_ms": 200.0, "p95_ms": 290.0, "p99_ms": 298.0, "n": 3}


def test_ratios_are_taken_within_a_round():
    assert median_ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_a_table_has_text_left_and_numbers_right():
    assert table(["what", "ms"], [["a", 1]]) == "| what   |   ms |\n|:-------|-----:|\n| a      |    1 |"
