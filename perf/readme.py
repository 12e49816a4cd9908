"""The README's figures, written from the result files that they come from.

    make readme        or: python -m perf.readme

What stands between <!-- name:begin --> and <!-- name:end --> is replaced. A test holds the README to it.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from examples.demo import markdown_table as demo_table
from perf import engine, load, peers, scale, store, ttft
from perf.results import Report
from refrag.evaluation.report import markdown_differences, markdown_tasks
from refrag.evaluation.report import markdown_table as evaluation_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS, DEMO = ROOT / "perf" / "results", ROOT / "checkpoints" / "demo"
TASK_ROWS = (
    "plain decoder, full context",
    "REFRAG k=16",
    "REFRAG k=16, 10% random",
    "REFRAG k=16, 10% learned",
    "REFRAG k=16, 10% oracle",
)
# Of the demo's answers, so many lines are shown.
NUM_SHOWN = 4


def quickstart(transcript: str) -> str:
    """The first question with both answers, and the last line."""
    lines = transcript.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("1. "))
    return "\n".join(["```", *lines[first : first + NUM_SHOWN], "…", lines[-1], "```"])


def integers(report: Report) -> str:
    """How near the vectors are, the answers, and their differences."""
    parts = [
        report["tables"]["onnx-encoders"]["about"],
        evaluation_table(report, "onnx-encoders"),
        markdown_differences(report, "onnx-encoders"),
        f"`{report['command']}` on {report['machine']}, commit {report['commit']}.",
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


def with_source(draw: Callable[[Report], str]) -> Callable[[Report], str]:
    """The table, and where it comes from."""
    return lambda report: f"{draw(report)}\n\n`{report['command']}` on {report['machine']}, commit {report['commit']}."


# Block → result file, and what becomes of it.
BLOCKS: dict[str, tuple[Path, Callable[[Report], str]]] = {
    "demo": (RESULTS / "demo.json", demo_table),
    "ttft": (RESULTS / "ttft.json", with_source(ttft.chosen_table)),
    "stages": (RESULTS / "ttft.json", ttft.stage_table),
    "load": (RESULTS / "load.json", with_source(load.load_table)),
    "peers": (RESULTS / "peers.json", with_source(peers.peers_table)),
    "scale": (RESULTS / "scale.json", scale.markdown),
    "engine": (RESULTS / "engine.json", engine_results),
    "store": (RESULTS / "store.json", store.markdown),
    "answers": (DEMO / "evaluation.json", partial(evaluation_table, table_name="answers")),
    "tasks": (DEMO / "evaluation.json", partial(markdown_tasks, table_name="answers", names=TASK_ROWS)),
    "int8": (DEMO / "int8.json", integers),
    "reconstruction": (DEMO / "ablations.json", partial(evaluation_table, table_name="reconstruction, world")),
    "continuation": (DEMO / "ablations.json", partial(evaluation_table, table_name="continuation, world")),
}


def render(text: str) -> str:
    """The README with every block as its result file says."""
    for name, (path, draw) in BLOCKS.items():
        text = replace_block(text, name, draw(json.loads(path.read_text())))
    return replace_block(text, "quickstart", quickstart((RESULTS / "demo.txt").read_text()))


def replace_block(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", text)
    assert count == 1, f"the README has {count} blocks {name}, it needs one"
    return replaced


def main() -> None:
    README.write_text(render(README.read_text()))


if __name__ == "__main__":
    main()
