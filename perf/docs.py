"""Generates parts of the documentation: figures from result files, lists and a drawing from the source.

    make docs        or: python -m perf.docs [--check]

The text between <!-- name:begin --> and <!-- name:end --> in README.md or docs/ is replaced. With --check nothing is
written: the names of the blocks that are out of date are printed, and the exit code is 1 if there are any.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path

from examples.demo import markdown_table as demo_table
from perf import (
    accuracy_report,
    conversation,
    document,
    engine,
    gpu_report,
    int8,
    leaving,
    load,
    openai,
    peers,
    policies,
    retrieval,
    scale,
    shadowing,
    sizing,
    source_map,
    store,
    ttft,
)
from perf.results import Report
from refrag.embedded.settings import ServerSettings
from refrag.evaluation.heads.report import render_recall
from refrag.evaluation.questions.comparison import render_comparison
from refrag.evaluation.questions.summary import (
    BRIEF,
    BRIEF_OF_LONG,
    RECALL,
    render_briefly,
    render_chunk_sizes,
    render_passages,
    render_policies,
)
from refrag.evaluation.report import markdown_differences, markdown_tasks
from refrag.evaluation.report import markdown_table as evaluation_table
from refrag.reporting import table
from refrag_client.openai.settings import EndpointSettings, show_default

ROOT = Path(__file__).resolve().parents[1]
RESULTS, WORLD, PAIR = ROOT / "perf" / "results", ROOT / "checkpoints" / "world", ROOT / "checkpoints" / "smollm2"
TASK_ROWS = (
    "plain decoder, full context",
    "REFRAG k=16",
    "REFRAG k=16, 10% random",
    "REFRAG k=16, 10% learned",
    "REFRAG k=16, 10% oracle",
)
QUESTION_SETS = ("xquad", "nq", "hotpotadv", "counterfactual", "rejection")
POLICY_SETS = ("policies-xquad", "policies-nq", "policies-hotpotqa", "policies-musique", "policies-nq-weak")
LONG_ANSWER_SETS = ("qmsum", "squality")
# Numbers of passages that a weak retriever found.
WEAK_PASSAGES = (1, 5, 10, 20, 40)
# What taught the learned policy -> the result of what it then answers.
POLICY_TEACHERS = {"labels": "retuned", "gains": "xquad-weighed", "GRPO": "xquad-reinforced"}
# Number of lines shown of the demo's transcript: the first question with both answers.
NUM_SHOWN = 4
# The README quotes the performance at this context length and this number of callers.
HEADLINE_TOKENS, HEADLINE_CHUNK_SIZE, HEADLINE_CALLERS = 16_384, 16, 8
HEADLINE_FRACTIONS = (0.0, 0.1)
GPU_SHAPE, GPU_CHUNK_SIZES = "llama-2-7b", (16, 32)


class StaleBlock(Exception):
    """Raised for a block that is in no page, or in more than one place."""


def quickstart() -> str:
    """Return the demo's first question with both answers, and its last line."""
    lines = (RESULTS / "demo.txt").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("1. "))
    return "\n".join(["```", *lines[first : first + NUM_SHOWN], "…", lines[-1], "```"])


def headline() -> str:
    """Return the README's summary of the performance."""
    first_tokens, levels = read(RESULTS / "ttft.json"), read(RESULTS / "load.json")
    milliseconds = {
        (row["store"], row["expand_fraction"]): row["ttft"]["p50_ms"]
        for row in first_tokens["rows"]
        if (row["context_tokens"], row["chunk_size"]) == (HEADLINE_TOKENS, HEADLINE_CHUNK_SIZE)
        and row["encoder"] == "fp32"
    }
    on_gpu = read(RESULTS / "gpu.json")
    speedups = {
        fraction: [
            f"{gpu_report.find_row(on_gpu, GPU_SHAPE, HEADLINE_TOKENS, size, fraction)['speedup']:.1f}"
            for size in GPU_CHUNK_SIZES
        ]
        for fraction in HEADLINE_FRACTIONS
    }
    compressed, expanded = (" and ".join(each) for each in speedups.values())
    first, second = (f"{milliseconds['warm', fraction]:.0f} ms" for fraction in HEADLINE_FRACTIONS)
    level = next(row for row in levels["rows"] if row.get("concurrency") == HEADLINE_CALLERS)
    return (
        f"On {first_tokens['machine']}, with the tests' small pair and {HEADLINE_TOKENS:,} context tokens whose "
        f"vectors are stored, the first token\ncomes after {first} all compressed and {second} with a tenth expanded, "
        f"instead of {milliseconds['plain', 1.0] / 1e3:.1f} s; all compressed, {HEADLINE_CALLERS} callers\nget "
        f"{level['speedup']:.1f} times as many answers per second over {levels['context_tokens']:,} tokens. On one "
        f"{on_gpu['device']}, in process,\nLLaMA-2-7B's shape gives the first token {compressed} times sooner (k="
        f"{' and '.join(map(str, GPU_CHUNK_SIZES))}), with a tenth expanded {expanded}."
    )


def questions(report: Report) -> str:
    """Return the table of a question set whose answers are short."""
    return with_count(report, render_briefly(report))


def without_recovery(report: Report) -> str:
    """Return the table of a question set where plain is too near to no context for a share of the way between them."""
    return with_count(report, render_briefly(report, recovered=None))


def compared_policies(report: Report) -> str:
    """Return the policies on a question set, and how they differ from similarity and from plain."""
    return with_count(report, render_policies(report, others=("k=16:p=0.1:similarity", "plain")))


def long_answers(report: Report) -> str:
    """Return the table of a question set whose answers are sentences."""
    sizes = ("prompt_slots", "num_cut")
    return with_count(report, render_briefly(report, BRIEF_OF_LONG, recovered="log_perplexity", sizes=sizes))


def chunk_sizes(report: Report) -> str:
    """Return the table of a question set at several chunk sizes, with nothing expanded, and how these differ."""
    return with_count(report, render_chunk_sizes(report))


def weak_retriever() -> str:
    """Return the table of a question set over more and more passages that a weak retriever found."""
    reports = [read(RESULTS / "smollm2" / f"nq-weak-{number}.json") for number in WEAK_PASSAGES]
    return with_count(reports[0], render_passages(reports))


def policy_teachers() -> str:
    """Return the learned policy's answers to the same questions, by what taught it."""
    taught = {name: read(RESULTS / "smollm2" / f"{stem}.json") for name, stem in POLICY_TEACHERS.items()}
    rows = [
        {**row, "condition": name}
        for name, report in taught.items()
        for row in report["rows"]
        if row["condition"] == "k=16:p=0.1:learned"
    ]
    sources = [source_line(report) for report in taught.values()]
    return "\n\n".join([render_briefly({"rows": rows}, {**BRIEF, **RECALL}, recovered=None), *sources])


def with_count(report: Report, figures: str) -> str:
    """Return the figures of a question set between how many questions were asked and where that was."""
    return f"{report['num_rows']} questions.\n\n{figures}\n\n{source_line(report)}"


def integers(report: Report) -> str:
    """Return the comparison of the integer encoder with the others: its vectors, its answers, their differences."""
    parts = [
        report["tables"]["onnx-encoders"]["about"],
        evaluation_table(report, "onnx-encoders"),
        markdown_differences(report, "onnx-encoders"),
        source_line(report),
    ]
    return "\n\n".join(parts)


def engine_results(report: Report) -> str:
    decoder = report["decoders"]["30m"]
    latency = decoder["ttft"]
    rest = max(row["rest_against_alone"] for row in latency["beside_long_prefill"])
    overhead = next(row["overhead"] for row in decoder["overhead"] if row["concurrency"] == 8)
    about = (
        f"A decoder of {decoder['num_parameters'] / 1e6:.0f}M random weights, answers of {report['num_tokens']} "
        f"tokens. Beside {latency['long_prompt_slots']:,} slots of another prompt a short one gets its first token "
        f"after the step that had begun, and then in at most {rest:.1f} times what it takes alone. At eight requests "
        f"{100 * overhead:.0f}% of a step is spent outside the model's forward pass. `make bench-engine` on "
        f"{report['machine']}, commit {report['commit']}."
    )
    return f"{engine.markdown_table(report, '30m')}\n\n{about}"


def serve_options() -> str:
    """Return a table of the options of `refrag serve` with their defaults."""
    rows = []
    for option in fields(ServerSettings):
        default = "none" if option.metadata["repeated"] or option.default is None else option.default
        rows.append([f"`--{option.name.replace('_', '-')}`", default, option.metadata["help"]])
    return table(["option", "default", "meaning"], rows, num_text=3)


def openai_options() -> str:
    """Return a table of the options of `refrag openai` with their defaults."""
    rows = [
        [f"`--{option.name.replace('_', '-')}`", show_default(option), option.metadata["help"]]
        for option in fields(EndpointSettings)
    ]
    return table(["option", "default", "meaning"], rows, num_text=3)


def source_line(report: Report) -> str:
    return f"`{report['command']}` on {report['machine']}, commit {report['commit']}."


def with_source(draw: Callable[[Report], str]) -> Callable[[Report], str]:
    """Return a function that draws the table and adds a line saying where it comes from."""
    return lambda report: f"{draw(report)}\n\n{source_line(report)}"


def read(path: Path) -> Report:
    return json.loads(path.read_text())


# Block → its result file, and the function that draws it.
FROM_RESULTS: dict[str, tuple[Path, Callable[[Report], str]]] = {
    "demo": (RESULTS / "demo.json", demo_table),
    "ttft": (RESULTS / "ttft.json", with_source(ttft.chosen_table)),
    "stages": (RESULTS / "ttft.json", ttft.stage_table),
    "load": (RESULTS / "load.json", with_source(load.load_table)),
    "peers": (RESULTS / "peers.json", with_source(peers.peers_table)),
    "pair-ttft": (RESULTS / "smollm2" / "ttft.json", with_source(ttft.ttft_table)),
    "pair-openai": (RESULTS / "smollm2" / "openai.json", with_source(openai.markdown)),
    "pair-shadowing": (RESULTS / "smollm2" / "shadowing.json", with_source(shadowing.markdown)),
    "pair-peers": (RESULTS / "smollm2" / "peers.json", peers.markdown),
    "pair-load": (RESULTS / "smollm2" / "load.json", with_source(load.load_table)),
    "pair-document": (RESULTS / "smollm2" / "document.json", with_source(document.markdown)),
    "pair-131072": (RESULTS / "smollm2" / "ttft-131072.json", with_source(ttft.ttft_table)),
    "pair-conversation": (RESULTS / "smollm2" / "conversation.json", with_source(conversation.markdown)),
    "pair-int8": (RESULTS / "smollm2" / "int8.json", with_source(int8.markdown)),
    "pair-policies": (RESULTS / "smollm2" / "policies.json", policies.markdown),
    "accuracy": (RESULTS / "accuracy.json", accuracy_report.markdown),
    "retrieval": (RESULTS / "retrieval.json", retrieval.markdown),
    "gpu": (RESULTS / "gpu.json", with_source(gpu_report.prefill_table)),
    "scale": (RESULTS / "scale.json", scale.markdown),
    "engine": (RESULTS / "engine.json", engine_results),
    "store": (RESULTS / "store.json", store.markdown),
    "leaving": (RESULTS / "leaving.json", with_source(leaving.markdown)),
    "endpoint": (RESULTS / "openai.json", with_source(openai.markdown)),
    "sizing": (RESULTS / "sizing.json", sizing.markdown),
    "heads": (PAIR / "heads.json", with_source(render_recall)),
    "taught": (PAIR / "taught.json", with_source(render_comparison)),
    **{name: (PAIR / "questions" / f"{name}.json", questions) for name in QUESTION_SETS},
    "retuned": (RESULTS / "smollm2" / "retuned.json", questions),
    "xquad-all": (RESULTS / "smollm2" / "xquad-all.json", questions),
    "counterfactual-all": (RESULTS / "smollm2" / "counterfactual.json", questions),
    "hotpotadv-gold": (RESULTS / "smollm2" / "hotpotadv-gold.json", questions),
    "musique-gold": (RESULTS / "smollm2" / "musique-gold.json", questions),
    "clapnq": (RESULTS / "smollm2" / "clapnq.json", long_answers),
    "conversations": (RESULTS / "smollm2" / "conversations.json", long_answers),
    "conversations-last": (RESULTS / "smollm2" / "conversations-last.json", long_answers),
    "squality-taught": (RESULTS / "smollm2" / "squality-taught.json", long_answers),
    "untuned": (PAIR / "questions" / "untuned.json", without_recovery),
    "chunk-sizes": (PAIR / "questions" / "chunk-sizes.json", chunk_sizes),
    **{name: (PAIR / "questions" / f"{name}.json", compared_policies) for name in POLICY_SETS},
    **{name: (PAIR / "questions" / f"{name}.json", long_answers) for name in LONG_ANSWER_SETS},
    "answers": (WORLD / "evaluation.json", partial(evaluation_table, table_name="answers")),
    "tasks": (WORLD / "evaluation.json", partial(markdown_tasks, table_name="answers", names=TASK_ROWS)),
    "int8": (WORLD / "int8.json", integers),
    "reconstruction": (WORLD / "ablations.json", partial(evaluation_table, table_name="reconstruction, world")),
    "continuation": (WORLD / "ablations.json", partial(evaluation_table, table_name="continuation, world")),
}
FROM_SOURCE: dict[str, Callable[[], str]] = {
    "quickstart": quickstart,
    "headline": headline,
    "nq-weak": weak_retriever,
    "policy-teachers": policy_teachers,
    "serve": serve_options,
    "openai": openai_options,
    "imports": source_map.draw_imports,
    "files": source_map.list_files,
}


def draw_blocks() -> dict[str, str]:
    """Return the up-to-date text of every block, by name."""
    drawn = {name: draw(read(path)) for name, (path, draw) in FROM_RESULTS.items()}
    return drawn | {name: draw() for name, draw in FROM_SOURCE.items()}


def read_pages(root: Path = ROOT) -> dict[Path, str]:
    return {path: path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))}


def render(pages: Mapping[Path, str], blocks: Mapping[str, str]) -> dict[Path, str]:
    """Return the pages with every block replaced; raise StaleBlock unless each block is in exactly one place."""
    rendered = dict(pages)
    for name, content in blocks.items():
        page = _page_of(name, rendered)
        rendered[page] = _replace(rendered[page], name, content)
    return rendered


def stale_blocks(pages: Mapping[Path, str], blocks: Mapping[str, str]) -> Iterator[str]:
    for name, content in blocks.items():
        page = _page_of(name, pages)
        if _block(name, content) not in pages[page]:
            yield f"block {name} of {page.relative_to(ROOT)}"


def _page_of(name: str, pages: Mapping[Path, str]) -> Path:
    places = [path for path, text in pages.items() for _ in _pattern(name).finditer(text)]
    if len(places) != 1:
        raise StaleBlock(f"block {name} is in {len(places)} places; it must be in one page of README.md and docs/")
    return places[0]


def _replace(text: str, name: str, content: str) -> str:
    return _pattern(name).sub(lambda _: _block(name, content), text)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(f"<!-- {name}:begin -->.*?<!-- {name}:end -->", re.DOTALL)


def _block(name: str, content: str) -> str:
    return f"<!-- {name}:begin -->\n{content}\n<!-- {name}:end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a block is not up to date")
    pages, blocks = read_pages(), draw_blocks()
    if parser.parse_args().check:
        stale = list(stale_blocks(pages, blocks))
        print("\n".join(f"{each} is not up to date; run make docs" for each in stale), end="\n" if stale else "")
        return 1 if stale else 0
    for path, text in render(pages, blocks).items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
