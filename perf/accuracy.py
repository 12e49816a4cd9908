"""Measures accuracy and first token over retrieved passages, plain against compressed, through OpenAI's endpoint.

    make bench-accuracy QUESTIONS=nq.jsonl.gz
    or: python -m perf.accuracy nq.jsonl.gz --num-rows 100 --output perf/results/accuracy.json

The passages of a question file are indexed into one collection of the real server, vectors included. Each question is
then asked at /v1/chat/completions, streamed, at temperature 0, in every setting: a number of passages to retrieve, and
a way to read them. The settings of a question take turns in an order drawn by the seed, one request at a time.

    plain           every chunk expanded (expand_fraction 1), by the same decoder as the other ways. A decoder that was
                    tuned on plain passages, the fairer baseline, is in `refrag evaluate questions`
    p=F             the share F of the chunks expanded, chosen by the checkpoint's policy (expand_fraction)
    N slots         as many chunks expanded as a prompt of N slots holds (max_prompt_slots)

A row of the report has, of the questions that were answered:

    contains, f1, exact_match       scores of refrag.evaluation.scores against the accepted answers, with 95% intervals;
                                    from 0 to 1 in JSON, in % in the tables
    gold_retrieved                  share of them for which a passage with the evidence was retrieved, by the ids that
                                    the answer tells; where the question file names such passages
    first_token                     milliseconds, by the client's clock, from before the request is sent until the
                                    stream's first object, which comes with the first token: the endpoint's time and
                                    the search are in it
    prompt_slots, context_tokens    means, from the answer's usage; num_retrieved, from its passages
    num_unfit                       questions that the server refused, because their passages exceed the window, the
                                    budget or another limit; `refusal` is the first of its messages

`at_equal_latency` names, for each compressed setting, the plain one with the most passages whose median first token is
not later, and the differences of the scores, compressed less plain, with 95% intervals. Its times and differences are
of the questions that both answered; a plain setting that answered less than half of them is left out.

The engine reuses what it has computed of prompts that begin alike, as the prompts of one question do. Here its blocks
are as long as the window, and only whole blocks are reused, so every prompt is computed in full. The last line of the
output is the report as one JSON object.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tqdm import tqdm

from perf.accuracy_report import PLAIN, Setting, markdown, summarise_answers
from perf.deployment import LONGEST_ANSWER_SECONDS, deploy, serve, use_decoder
from perf.openai import endpoint
from perf.results import Report, describe_run, emit
from perf.retrieval import COLLECTION, fill_collection
from refrag.data.questions.passages import find_pool, read_pool
from refrag.data.questions.read import read_questions
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.data.questions.turns import as_turns
from refrag.errors import InvalidRequest
from refrag.evaluation.questions.answers_file import Answer, AnswersFile
from refrag.evaluation.questions.identity import digest_files, digest_model
from refrag.evaluation.scores import contains_answer, exact_match, token_f1
from refrag.history import USER, Turn
from refrag.machine.environment import describe_environment

SCORES = {"contains": contains_answer, "f1": token_f1, "exact_match": exact_match}
# What every refusal of too long a prompt advises.
TOO_LONG = "send fewer"


def list_settings(options: argparse.Namespace) -> list[Setting]:
    plain_passages = sorted({*options.passages, *options.plain_passages})
    ways = {f"p={fraction:g}": {"expand_fraction": fraction} for fraction in options.expand_fractions}
    ways |= {f"{slots} slots": {"max_prompt_slots": slots} for slots in options.slots}
    return [
        *(Setting(count, PLAIN, {"expand_fraction": 1.0}) for count in plain_passages),
        *(Setting(count, way, said) for way, said in ways.items() for count in options.passages),
    ]


def choose_passages(
    rows: Sequence[QuestionRow], pool: Mapping[str, SourcePassage], most: int | None, seed: int
) -> tuple[list[SourcePassage], Report]:
    """Return the passages to index, at most `most` or all of them, and how many there are of each kind.

    First come those with the evidence, then those that the rows list, the best of each row first, then others drawn by
    the seed. Raises InvalidRequest if `most` does not hold all the evidence.
    """
    gold = {each: pool[each] for row in rows for each in sorted(gold_ids(row))}
    if most is not None and most < len(gold):
        raise InvalidRequest(f"max_passages is {most}; {len(gold)} passages hold the evidence, so allow as many")
    deepest = max((len(row.passages) for row in rows), default=0)
    ranked = [row.passages[rank] for rank in range(deepest) for row in rows if rank < len(row.passages)]
    listed = {each.id: each for each in ranked if each.id not in gold}
    others = [each for key, each in pool.items() if key not in gold and key not in listed]
    random.Random(f"passages {seed}").shuffle(others)
    chosen = [*gold.values(), *listed.values(), *others][:most]
    num_listed = min(len(listed), len(chosen) - len(gold))
    counts = {"num_gold": len(gold), "num_listed": num_listed, "num_others": len(chosen) - len(gold) - num_listed}
    return chosen, {"num_passages": len(chosen), "num_in_file": len(pool), **counts}


def gold_ids(row: QuestionRow) -> set[str]:
    """Return the ids of the passages with the evidence; none if they are unknown."""
    return {row.passages[place].id for place in row.gold or ()}


def never_reuse(repository: Path, window: int) -> None:
    """Make the decoder's blocks as long as its window: no prompt fills one, and only full blocks are reused."""
    use_decoder(repository, "torch", "--set", f"block_size={window}")


def measure(rows: Sequence[QuestionRow], settings: Sequence[Setting], options: argparse.Namespace) -> Report:
    pool = read_pool(options.pool or find_pool(options.questions))
    passages, counts = choose_passages(rows, pool, options.max_passages, options.seed)
    if (most := max(setting.passages for setting in settings)) > len(passages):
        raise InvalidRequest(f"passages is {most}; {len(passages)} are indexed, so ask for no more")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = AnswersFile(options.answers or folder / "answers.jsonl", identify(options, counts))
        repository = deploy(options.checkpoint, folder, options.window, has_retrieval=True)
        never_reuse(repository, options.window)
        with serve(repository, folder / "collections", disk_path=folder / "store") as server:
            documents = ({"id": each.id, "title": each.title, "text": each.text} for each in passages)
            told = fill_collection(server, documents, folder / "corpus.jsonl")
            with (
                endpoint(server.grpc_address, f"--timeout-seconds={LONGEST_ANSWER_SECONDS}") as url,
                OpenAI(base_url=url, api_key="none", max_retries=0, timeout=LONGEST_ANSWER_SECONDS) as api,
            ):
                _ask_all(api, rows, settings, file, options)
    index = {**counts, "num_chunks": told["num_chunks"], "num_tokens": told["num_tokens"]}
    asked = {one.name: {row.id: file[row.id, one.name] for row in rows} for one in settings}
    return {"collection": index, **summarise_answers(settings, asked, options.seed)}


def identify(options: argparse.Namespace, counts: Report) -> Report:
    """Return what an answer and its time depend on, for the file of answers."""
    pool = options.pool or find_pool(options.questions)
    numbers = {name: getattr(options, name) for name in ("window", "max_tokens", "seed", "num_rows")}
    return {
        "checkpoint": digest_model(options.checkpoint),
        "questions": digest_files([options.questions], options.questions.parent),
        "pool": digest_files([pool], pool.parent),
        "machine": describe_environment()["machine"],
        "earlier_turns": "messages",
        **numbers,
        **counts,
    }


def _ask_all(
    api: OpenAI,
    rows: Sequence[QuestionRow],
    settings: Sequence[Setting],
    file: AnswersFile,
    options: argparse.Namespace,
) -> None:
    # The first answer of each way does not count: it uses models and tables for the first time.
    for setting in {one.way: one for one in reversed(settings)}.values():
        ask(api, rows[0], setting, options.max_tokens)
    rng = random.Random(f"turns {options.seed}")
    for row in tqdm(rows, desc="questions", disable=None):
        for setting in rng.sample(settings, len(settings)):
            if (row.id, setting.name) not in file:
                file.add(row.id, setting.name, ask(api, row, setting, options.max_tokens))


def ask(api: OpenAI, row: QuestionRow, setting: Setting, max_tokens: int) -> Answer:
    """Return scores, sizes and time of an answer, or the server's `refusal` of passages that do not fit."""
    began = time.perf_counter()
    try:
        stream = api.chat.completions.create(
            model="refrag",
            messages=[_message(turn) for turn in [*as_turns(row), Turn(USER, row.question)]],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=_own_fields(setting),
        )
    except BadRequestError as error:
        if TOO_LONG not in error.message:
            raise
        return {"refusal": error.body["message"] if isinstance(error.body, dict) else error.message}
    with stream:
        first = next(stream)
        seconds = time.perf_counter() - began
        parts = [part.model_dump() for part in (first, *stream)]
    return {"first_token_seconds": seconds, **read_answer(row, parts)}


def _message(turn: Turn) -> ChatCompletionMessageParam:
    if turn.role == USER:
        return {"role": "user", "content": turn.content}
    return {"role": "assistant", "content": turn.content}


def _own_fields(setting: Setting) -> dict[str, Any]:
    """Return the fields of a request that OpenAI does not have."""
    refrag = {**setting.options, "return_chunks": True, "deadline_ms": 1000 * LONGEST_ANSWER_SECONDS}
    return {"collection": COLLECTION, "num_passages": setting.passages, "refrag": refrag}


def read_answer(row: QuestionRow, parts: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the scores and sizes of an answer, from the objects of its stream."""
    *told, last = parts
    text = "".join(part["choices"][0]["delta"]["content"] or "" for part in told)
    retrieved = {passage["id"] for passage in told[-1]["refrag"]["passages"]}
    sizes = last["usage"]["prompt_tokens_details"]
    return {
        "text": text,
        **{name: score(text, row.answers) for name, score in SCORES.items()},
        **({"gold_retrieved": float(bool(retrieved & gold_ids(row)))} if row.gold else {}),
        "num_retrieved": len(retrieved),
        "prompt_slots": sizes["prompt_slots"],
        "context_tokens": sizes["context_tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="question file, as `refrag evaluate questions` takes it")
    parser.add_argument("--pool", type=Path, help="file of its passages (default: looked for beside it)")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument("--num-rows", type=int, default=100, help="questions, drawn by the seed")
    parser.add_argument("--max-passages", type=int, help="to index (default: all of the file)")
    parser.add_argument("--passages", type=int, nargs="+", default=[8, 32, 128], help="to retrieve, in every way")
    parser.add_argument("--plain-passages", type=int, nargs="*", default=[2, 4, 16], help="further ones, plain alone")
    parser.add_argument("--expand-fractions", type=float, nargs="*", default=[0.0, 0.1])
    parser.add_argument("--slots", type=int, nargs="*", default=[2_048], help="budgets of prompts")
    parser.add_argument("--window", type=int, default=8_192, help="slots of the decoder")
    parser.add_argument("--max-tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", type=Path, help="file of answers, for a run that was stopped to go on with")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = read_questions(options.questions, passages=options.pool, num_rows=options.num_rows, seed=options.seed)
    if unanswered := [row.id for row in rows if not row.answers]:
        parser.error(
            f"question {unanswered[0]} has no accepted answer to compare with; name a file whose all have some"
        )
    run = {"data": options.questions.name, "num_rows": len(rows), "seed": options.seed}
    sizes = {"window": options.window, "max_tokens": options.max_tokens}
    report = {**describe_run("perf.accuracy"), **run, **sizes, **measure(rows, list_settings(options), options)}
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
