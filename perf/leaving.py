"""Measures how long the decoder works for callers who have left, by the way in which they leave, on the real server.

    python -m perf.leaving --output perf/results/leaving.json

Each caller reads a few tokens of a long answer and leaves; then the decoder's own count of tokens is watched until it
rests. `refrag` is the ensemble itself, `refrag_watched` the model in front of it. What nothing else stops, the
request's deadline does. In the same run: what the model in front costs to the first token, and from token to token.

The last line of the output is the report as one JSON object.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from perf.deployment import serve
from perf.metrics import read_metric
from perf.results import Report, describe_run, emit, median_ratio
from refrag.embedded import EmbeddedServer
from refrag.export.repository import export_repository
from refrag.reporting import table
from refrag_client import GenerateRequest, RefragClient
from refrag_client.tensors import encode_request

MODELS = ("refrag", "refrag_watched")
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
# No end token may come: the answer goes on until something ends it.
LONG: dict[str, Any] = {"max_tokens": 3500, "min_tokens": 3500}
# The decoder rests if it makes no token for so long.
REST_SECONDS = 1.5


def leave_by_client(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    with RefragClient(server.grpc_address, model=model) as client:
        stream = client.stream(QUESTION, PASSAGES, deadline_ms=deadline_ms, **LONG)
        next(stream)
        left = time.monotonic()
        stream.cancel()
        return left


def leave_by_grpc_cancel(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    with _raw_stream(server, model, deadline_ms) as (_, call):
        left = time.monotonic()
        call.cancel()
        return left


def leave_by_closing_the_channel(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    with _raw_stream(server, model, deadline_ms) as (channel, _):
        left = time.monotonic()
        channel.close()
        return left


def leave_by_kill(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    program = (
        "import sys; from refrag_client import RefragClient\n"
        f"stream = RefragClient({server.grpc_address!r}, model={model!r}).stream({QUESTION!r}, {PASSAGES!r}, "
        f"deadline_ms={deadline_ms}, **{LONG!r})\n"
        "for piece in stream: print('token', flush=True)"
    )
    return _kill_after_a_line([sys.executable, "-c", program])


def leave_curl(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    url = f"http://{server.http_address}/v2/models/{model}/generate_stream"
    return _kill_after_a_line(["curl", "-sN", url, "-d", json.dumps(_body(deadline_ms))])


def leave_http(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    with closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(_body(deadline_ms)))
        connection.getresponse().readline()
        return time.monotonic()


def stop_over_http(server: EmbeddedServer, model: str, deadline_ms: int) -> float:
    with closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        body = {**_body(deadline_ms), "id": "web-1"}
        connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
        connection.getresponse().readline()
        left = time.monotonic()
    with closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        connection.request("POST", "/v2/models/decoder/generate_stream", json.dumps({"id": "web-1", "stop": True}))
        connection.getresponse().read()
    return left


WAYS: dict[str, Callable[[EmbeddedServer, str, int], float]] = {
    "refrag_client: stream left": leave_by_client,
    "gRPC: stream cancelled": leave_by_grpc_cancel,
    "gRPC: channel closed": leave_by_closing_the_channel,
    "gRPC: process killed": leave_by_kill,
    "HTTP: curl killed": leave_curl,
    "HTTP: connection closed": leave_http,
    "HTTP: closed, and stop sent": stop_over_http,
}


def measure_leaving(server: EmbeddedServer, deadline_ms: int) -> list[Report]:
    rows = []
    for way, leave in WAYS.items():
        for model in MODELS:
            left = leave(server, model, deadline_ms)
            before = count_tokens(server)
            rested, tokens = _wait_for_rest(server)
            rows.append(
                {"way": way, "model": model, "seconds": round(rested - left, 1), "tokens": int(tokens - before)}
            )
    return rows


def measure_cost(server: EmbeddedServer, num_turns: int, num_tokens: int) -> Report:
    """Measure one stream at a time through both models, in turns; the ratios are medians."""
    first: dict[str, list[float]] = {model: [] for model in MODELS}
    between: dict[str, list[float]] = {model: [] for model in MODELS}
    for _ in range(num_turns + 1):
        for model in MODELS:
            with RefragClient(server.grpc_address, model=model) as client:
                answer = client.generate(QUESTION, PASSAGES, max_tokens=num_tokens, min_tokens=num_tokens)
            assert answer.ttft_seconds is not None, "an answer with tokens has a first one"
            first[model].append(answer.ttft_seconds)
            between[model].append((answer.total_seconds - answer.ttft_seconds) / (num_tokens - 1))
    # The first turn warms up.
    return {
        "num_turns": num_turns,
        "num_tokens": num_tokens,
        "ttft_ms": {model: _median_ms(values[1:]) for model, values in first.items()},
        "ttft_ratio": median_ratio(first["refrag_watched"][1:], first["refrag"][1:]),
        "token_ms": {model: _median_ms(values[1:]) for model, values in between.items()},
        "token_ratio": median_ratio(between["refrag_watched"][1:], between["refrag"][1:]),
    }


def count_tokens(server: EmbeddedServer) -> float:
    """Return how many tokens the decoder has made, by Triton's metrics."""
    (value,) = read_metric(server, "refrag_generated_tokens")
    return value


def _wait_for_rest(server: EmbeddedServer) -> tuple[float, float]:
    """Return when the decoder made its last token, and its count then."""
    last, changed = count_tokens(server), time.monotonic()
    while time.monotonic() - changed < REST_SECONDS:
        time.sleep(0.05)
        if (now := count_tokens(server)) != last:
            last, changed = now, time.monotonic()
    return changed, last


@contextmanager
def _raw_stream(server: EmbeddedServer, model: str, deadline_ms: int) -> Iterator[tuple[grpc.Channel, grpc.Call]]:
    """Open a stream that nobody but gRPC watches over, and yield it and its channel once a token has come."""
    request = GenerateRequest(QUESTION, PASSAGES, deadline_ms=deadline_ms, **LONG)
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([encode_request(request, model)]))
        next(call)
        yield channel, call


def _kill_after_a_line(command: list[str]) -> float:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "it was asked for"
        process.stdout.readline()
        left = time.monotonic()
        process.send_signal(signal.SIGKILL)
    return left


def _body(deadline_ms: int) -> Report:
    return {"text_input": QUESTION, "passages": PASSAGES, "deadline_ms": deadline_ms, **LONG}


def _median_ms(seconds: list[float]) -> float:
    return round(1e3 * float(np.median(seconds)), 2)


def markdown(report: Report) -> str:
    cost = report["cost"]
    cells = {(row["way"], row["model"]): f"{row['seconds']:.1f} s, {row['tokens']} tokens" for row in report["leaving"]}
    rows = [[way, *(cells[way, model] for model in MODELS)] for way in dict.fromkeys(way for way, _ in cells)]
    about = (
        f"Deadline of each request: {report['deadline_ms'] / 1000:g} s. Through `refrag_watched` the first token takes "
        f"{cost['ttft_ratio']:.2f} times as long ({cost['ttft_ms']['refrag_watched']} ms against "
        f"{cost['ttft_ms']['refrag']} ms), each further one {cost['token_ratio']:.2f} times "
        f"({cost['token_ms']['refrag_watched']} against {cost['token_ms']['refrag']} ms), one stream at a time."
    )
    header = ["the caller leaves", *(f"`{model}` works on for" for model in MODELS)]
    return f"{table(header, rows, num_text=3)}\n\n{about}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/world"))
    parser.add_argument("--deadline-ms", type=int, default=15_000, help="of each answer that is left")
    parser.add_argument("--turns", type=int, default=20, help="answers through each model, for the cost")
    parser.add_argument("--tokens", type=int, default=64, help="of each of these answers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        export_repository(options.checkpoint, repository)
        with serve(repository) as server:
            report = {
                **describe_run("perf.leaving"),
                "deadline_ms": options.deadline_ms,
                "cost": measure_cost(server, options.turns, options.tokens),
                "leaving": measure_leaving(server, options.deadline_ms),
            }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
