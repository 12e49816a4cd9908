"""Measures how a conversation's first token grows with its turns, compressed and plain, over gRPC.

    python -m perf.conversation --checkpoint checkpoints/smollm2 --output perf/results/smollm2/conversation.json

A turn is a question of a line and its answer, as in `refrag chat`. The same conversation goes on in every way, and each
question carries all turns before it; none is left out.

    in a row       question after question, without passages: prompts begin like the ones before, so that the KV cache
                   has most of a plain one; median of the last ten questions
    new passages   the question brings passages that nobody asked about before, whose vectors are stored, as retrieval
                   does: nothing behind them is in the KV cache; median of the rounds
    growth         of the first token, from the first number of turns on, over plain's

The last line of the output is the report as one JSON object.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from perf.corpus import Corpus
from perf.deployment import LONGEST_ANSWER_SECONDS, connect, deploy, serve
from perf.results import Report, describe_run, emit, summarise
from refrag.config import RefragConfig
from refrag.reporting import table
from refrag.request import EXPAND_ALL, EXPAND_NOTHING
from refrag_client import Answer, RefragClient, StoreClient
from refrag_client.request import GenerateOptions

# By the name in the report: what a request says of the way.
WAYS: dict[str, GenerateOptions] = {
    "plain": {"policy": EXPAND_ALL},
    "p=0": {"policy": EXPAND_NOTHING},
    "p=0.1": {"expand_fraction": 0.1},
}
PLAIN = "plain"
IN_A_ROW, NEW_PASSAGES = "in a row", "new passages"
TURN_WORDS = 7
IN_A_ROW_QUESTIONS = 10

# Answers by scenario, number of turns and way.
Asked = dict[tuple[str, int, str], list[Answer]]


class Conversation:
    """One conversation, the same in every way."""

    def __init__(self, client: RefragClient, store: StoreClient, corpus: Corpus, num_turns: int) -> None:
        self.client, self.store, self.corpus = client, store, corpus
        self.turns = [corpus.draw_passage(TURN_WORDS) for _ in range(2 * num_turns)]

    def ask(self, turn: int, way: str, passages: Sequence[str] = ()) -> Answer:
        """Ask the question of this turn, counted from 1, with all turns before it."""
        options: GenerateOptions = {
            "history": self.turns[: 2 * turn - 2],
            "whole_history": True,
            "max_tokens": 1,
            "min_tokens": 1,
            "deadline_ms": 1000 * LONGEST_ANSWER_SECONDS,
            **WAYS[way],
        }
        answer = self.client.generate(self.turns[2 * turn - 2], passages, **options)
        assert answer.ttft_seconds is not None, "the answer has no token"
        return answer

    def ask_about_new(self, turn: int, way: str, num_tokens: int) -> Answer:
        """Ask about passages that nobody asked about before, whose vectors have been stored."""
        passages = self.corpus.draw(num_tokens)
        self.store.index(passages)
        return self.ask(turn, way, passages)


def measure(options: argparse.Namespace) -> list[Report]:
    window = RefragConfig.load(options.checkpoint).max_prompt_slots
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), window)
        with (
            serve(repository, disk_path=f"{folder}/store") as server,
            connect(server) as client,
            StoreClient(server.grpc_address) as store,
        ):
            conversation = Conversation(client, store, Corpus(repository), max(options.turns))
            asked = ask_in_a_row(conversation, options.turns)
            asked |= ask_about_new(conversation, options.turns, options.passage_tokens, options.rounds)
    return [describe(asked, *key, first_turn=min(options.turns)) for key in asked]


def ask_in_a_row(conversation: Conversation, turns: Sequence[int]) -> Asked:
    """Return the answers to the last questions up to each number of turns."""
    counted = {turn: end for end in turns for turn in range(end - IN_A_ROW_QUESTIONS + 1, end + 1)}
    asked: Asked = {(IN_A_ROW, end, way): [] for end in turns for way in WAYS}
    for turn in tqdm(range(1, max(turns) + 1), desc=IN_A_ROW, disable=None):
        for way in WAYS:
            answer = conversation.ask(turn, way)
            if turn in counted:
                asked[IN_A_ROW, counted[turn], way].append(answer)
    return asked


def ask_about_new(conversation: Conversation, turns: Sequence[int], num_tokens: int, num_rounds: int) -> Asked:
    """Return the answers of all rounds."""
    asked: Asked = {(NEW_PASSAGES, end, way): [] for end in turns for way in WAYS}
    for _ in tqdm(range(num_rounds), desc=NEW_PASSAGES, disable=None):
        for end in turns:
            for way in WAYS:
                asked[NEW_PASSAGES, end, way].append(conversation.ask_about_new(end, way, num_tokens))
    return asked


def describe(asked: Asked, scenario: str, end: int, way: str, first_turn: int) -> Report:
    def grown(way: str) -> float:
        return _median(asked[scenario, end, way]) - _median(asked[scenario, first_turn, way])

    figures = asked[scenario, end, way][-1].statistics
    return {
        "scenario": scenario,
        "turns": end,
        "way": way,
        "prompt_slots": figures.prompt_slots,
        "context_tokens": figures.context_tokens,
        "expanded_chunks": figures.num_expanded_chunks,
        "ttft": summarise([_seconds(answer) for answer in asked[scenario, end, way]]),
        "growth_over_plain": None if end == first_turn else round(grown(way) / grown(PLAIN), 3),
    }


def _median(answers: Sequence[Answer]) -> float:
    return statistics.median(map(_seconds, answers))


def _seconds(answer: Answer) -> float:
    assert answer.ttft_seconds is not None
    return answer.ttft_seconds


def markdown(report: Report) -> str:
    header = ["prompts", "turns", "way", "slots", "first token", "p95", "growth over plain's"]
    return table(header, [_cells(row) for row in report["rows"]], num_text=1)


def _cells(row: Report) -> list[str]:
    growth = row["growth_over_plain"]
    return [
        row["scenario"],
        f"{row['turns']:,}",
        row["way"],
        f"{row['prompt_slots']:,}",
        f"{row['ttft']['p50_ms']:,.0f} ms",
        f"{row['ttft']['p95_ms']:,.0f} ms",
        "" if growth is None or row["way"] == PLAIN else f"{growth:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--passage-tokens", type=int, default=128, help="of the passages that a question brings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    emit({**describe_run("perf.conversation"), "rows": measure(options)}, markdown, options.output)


if __name__ == "__main__":
    main()
