"""Measures what each policy costs until a client's first token, over gRPC, with the context's vectors stored.

    python -m perf.policies --checkpoint checkpoints/smollm2 --output perf/results/policies.json

The policies take turns, each about passages of its own that nobody asked about before, so that no prompt finds its KV
cache again. `none` is the floor: every chunk compressed, nothing to choose.

    first token   seconds from just before the request is encoded to the first response that has a token; median
    over none     the policy over `none`: median of the ratios within a round
    sensing       of the first token, admission to the decoder's own choice of chunks; for `attention`

The last line of the output is the report as one JSON object.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from perf.corpus import QUESTION, Corpus
from perf.deployment import deploy, serve
from perf.results import Report, describe_run, emit, median_ratio, summarise
from perf.stages import StageClock
from refrag.reporting import table
from refrag_client import Answer, RefragClient, StoreClient

FLOOR, POLICIES = "none", ["random", "similarity", "neighbourhood", "learned", "attention"]
# Slots beyond the context: the question's and the template's, and one for the answer's only token.
SPARE_SLOTS = 192


class Asker:
    """Asks by each policy in turn."""

    def __init__(self, client: RefragClient, store: StoreClient, corpus: Corpus, expand_fraction: float) -> None:
        self.client, self.store, self.corpus, self.expand_fraction = client, store, corpus, expand_fraction
        self.num_sensed = 0

    def ask(self, num_tokens: int, policy: str) -> Answer:
        """Ask about new passages, whose vectors have been stored."""
        passages = self.corpus.draw(num_tokens)
        self.store.index(passages)
        self.num_sensed += policy == "attention"
        return self.client.generate(
            QUESTION, passages, policy=policy, expand_fraction=self.expand_fraction, max_tokens=1, min_tokens=1
        )


def measure(options: argparse.Namespace) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), max(options.context_tokens) + SPARE_SLOTS)
        with (
            serve(repository, disk_path=f"{folder}/store") as running,
            RefragClient(running.grpc_address) as client,
            StoreClient(running.grpc_address) as store,
            StageClock(running) as clock,
        ):
            asker = Asker(client, store, Corpus(repository), options.expand_fraction)
            rows = []
            for num_tokens in options.context_tokens:
                rows += measure_length(asker, clock, num_tokens, [FLOOR, *options.policies], options.rounds)
            return rows


def measure_length(
    asker: Asker, clock: StageClock, num_tokens: int, policies: Sequence[str], num_rounds: int
) -> list[Report]:
    """Return a row for each policy; a first round warms up."""
    seconds: dict[str, list[float]] = {policy: [] for policy in policies}
    slots: dict[str, int] = {}
    for number in tqdm(range(num_rounds + 1), desc=f"{num_tokens} tokens", disable=None):
        if number == 1:
            before = clock.read_sensing(asker.num_sensed)
        for policy in policies:
            answer = asker.ask(num_tokens, policy)
            assert answer.ttft_seconds is not None, "the answer has no token"
            slots[policy] = answer.statistics.prompt_slots
            seconds[policy] += [answer.ttft_seconds] if number else []
    after = clock.read_sensing(asker.num_sensed)
    sensing = (after[0] - before[0]) / max(1, after[1] - before[1])
    return [
        {
            "context_tokens": num_tokens,
            "policy": policy,
            "expand_fraction": 0.0 if policy == FLOOR else asker.expand_fraction,
            "prompt_slots": slots[policy],
            "ttft": summarise(seconds[policy]),
            "over_none": median_ratio(seconds[policy], seconds[FLOOR]),
            **({"sensing_ms": round(1e3 * sensing, 2)} if policy == "attention" else {}),
        }
        for policy in policies
    ]


def markdown(report: Report) -> str:
    """Return the table, with machine, commit and command."""
    header = ["context tokens", "policy", "slots", "first token", "p95", "over none", "sensing"]
    about = f"`{report['command']}` on {report['machine']}, commit {report['commit']}."
    return table(header, [_cells(row) for row in report["rows"]], num_text=0) + "\n\n" + about


def _cells(row: Report) -> list[str]:
    return [
        f"{row['context_tokens']:,}",
        row["policy"],
        f"{row['prompt_slots']:,}",
        f"{row['ttft']['p50_ms']:.0f} ms",
        f"{row['ttft']['p95_ms']:.0f} ms",
        f"{row['over_none']:.2f}×",
        f"{row['sensing_ms']:.0f} ms" if "sensing_ms" in row else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[2048, 8000])
    parser.add_argument(
        "--policies", nargs="+", default=["random", "similarity", "neighbourhood", "learned", "attention"]
    )
    parser.add_argument("--expand-fraction", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    emit({**describe_run("perf.policies"), "rows": measure(options)}, markdown, options.output)


if __name__ == "__main__":
    main()
