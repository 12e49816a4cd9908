"""Measures the summary of a document as long as the decoder's window holds compressed, over gRPC.

    python -m perf.document --checkpoint checkpoints/smollm2 --output perf/results/smollm2/document.json

The document is the reference of the language that every Python brings, as `refrag summarize` would send it: passages in
their order, the default share of chunks to expand, which gives way to the window.

    encoded        seconds in which the store takes in the chunk vectors of all passages
    first token    seconds from just before the request is encoded to the first response that has a token
    tokens/s       of the answer behind its first token
    memory         MiB of the server and the processes of its models while idle, and the most of them from the first
                   passage encoded to the last token

The last line of the output is the report as one JSON object.
"""

import argparse
import tempfile
import time
from pathlib import Path

from examples.documentation import read_documentation
from perf.corpus import Corpus
from perf.deployment import connect, deploy, serve
from perf.memory import PeakMemory, memory_mib
from perf.results import Report, describe_run, emit
from refrag.config import RefragConfig
from refrag.reporting import table
from refrag_client import Answer, StoreClient

INSTRUCTION = "Summarize the document."
# Slots of the template and of the instruction, and the chunks that it is encoded as.
SPARE_SLOTS = 64


def measure(options: argparse.Namespace) -> Report:
    window = options.window or RefragConfig.load(options.checkpoint).max_prompt_slots
    with tempfile.TemporaryDirectory() as folder:
        repository = deploy(options.checkpoint, Path(folder), window)
        passages = fill_window(Corpus(repository), window - options.max_tokens - SPARE_SLOTS)
        with (
            serve(repository, disk_path=f"{folder}/store") as server,
            connect(server) as client,
            StoreClient(server.grpc_address) as store,
        ):
            idle_mib = memory_mib(server)
            with PeakMemory(server) as memory:
                start = time.perf_counter()
                store.index(passages)
                encoded = time.perf_counter() - start
                answer = client.generate(INSTRUCTION, passages, max_tokens=options.max_tokens, seed=0)
    return {
        "window": window,
        "passages": len(passages),
        "words": sum(len(passage.split()) for passage in passages),
        "encoded_s": round(encoded, 1),
        **describe(answer),
        "idle_mib": idle_mib,
        "peak_mib": memory.peak_mib,
    }


def fill_window(corpus: Corpus, num_slots: int) -> list[str]:
    """Return the first passages of the documentation, as many as have no more chunks than these slots."""
    passages, size = [], corpus.config.chunk_size
    for passage in read_documentation():
        num_slots -= -(-corpus.count_tokens(passage) // size)
        if num_slots < 0:
            break
        passages.append(passage)
    return passages


def describe(answer: Answer) -> Report:
    assert answer.ttft_seconds is not None, "the answer has no token"
    seconds, figures = answer.total_seconds - answer.ttft_seconds, answer.statistics
    return {
        "context_tokens": figures.context_tokens,
        "chunks": figures.num_chunks,
        "expanded_chunks": figures.num_expanded_chunks,
        "prompt_slots": figures.prompt_slots,
        "ttft_s": round(answer.ttft_seconds, 1),
        "answer_tokens": len(answer.token_ids),
        "tokens_per_second": round((len(answer.token_ids) - 1) / seconds, 1) if seconds else 0.0,
        "text": answer.text,
    }


def markdown(report: Report) -> str:
    rows = [
        ["document", f"{report['context_tokens']:,} tokens ({report['words']:,} words) in {report['chunks']:,} chunks"],
        ["prompt", f"{report['prompt_slots']:,} slots of a window of {report['window']:,}"],
        ["expanded", f"{report['expanded_chunks']:,} chunks"],
        ["encoded", f"{report['encoded_s']:,.0f} s"],
        ["first token", f"{report['ttft_s']:,.1f} s"],
        ["answer", f"{report['answer_tokens']:,} tokens, {report['tokens_per_second']:,.1f} tokens/s"],
        ["memory", f"{report['idle_mib']:,.0f} MiB while idle, {report['peak_mib']:,.0f} MiB at most"],
    ]
    return table(["", ""], rows, num_text=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--window", type=int, help="the decoder's, in slots (default: the checkpoint's)")
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens of the summary")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    emit({**describe_run("perf.document"), **measure(options)}, markdown, options.output)


if __name__ == "__main__":
    main()
