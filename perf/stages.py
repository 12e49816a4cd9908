"""Reads where a request's time goes from the server's own clocks: Triton's model statistics and the engine's metrics.

    client, gRPC      the client's time to first token less the ensemble's: encoding, transport, the way back
    preprocessing     waiting for the model and computing, its tensors copied in and out; the same for each model
    ...
    hand-overs        the rest until the decoder admits the request: Triton's work between the models
    decoder           admission to first token

Times are means over the requests between two readings.
"""

import time
from dataclasses import dataclass
from types import TracebackType

from tritonclient.grpc import InferenceServerClient

from perf.metrics import read_metric
from refrag.embedded import EmbeddedServer

# The models before the decoder, in order.
MODELS = ("preprocessing", "chunk_encoder", "expansion_policy", "projector")
ONNX_MODELS = ("chunk_encoder", "projector")
# Models bring their metrics up to date once a second, and later on a busy machine.
METRIC_SECONDS, POLL_SECONDS = 300.0, 0.05
COMPUTE = ("compute_input", "compute_infer", "compute_output")
PHASES = ("queue", *COMPUTE)


@dataclass(frozen=True)
class Reading:
    """Seconds spent so far: in `models` by model and phase, in `engine` by histogram, as (sum, count)."""

    models: dict[str, dict[str, float]]
    engine: dict[str, tuple[float, int]]


class StageClock:
    """Reads a server's clocks."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.triton = InferenceServerClient(server.grpc_address)

    def __enter__(self) -> "StageClock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.triton.close()

    def read(self) -> Reading:
        """Return a reading of all requests that were answered so far; none may have failed."""
        num_requests = self._count_requests()
        engine = {name: self._read_histogram(f"refrag_{name}_seconds", num_requests) for name in ("ttft", "queue")}
        told = self.triton.get_inference_statistics(as_json=True)["model_stats"]
        models = {model["name"]: _phases(model["inference_stats"]) for model in told}
        for name in ONNX_MODELS:
            # Of batches that are cut into pieces; Triton's statistics leave it out.
            models[name]["compute_infer"] += self._read_metric("refrag_long_batch_seconds", f'model="{name}"')
        return Reading(models, engine)

    def read_lookup(self) -> float:
        """Return the seconds spent so far in looking up chunk vectors, by requests that all have passages."""
        name = "refrag_store_lookup_seconds"
        return self._read_histogram(name, self._count_requests(), 'model="preprocessing"')[0]

    def read_sensing(self, num_requests: int) -> tuple[float, int]:
        """Return the seconds that so many requests have spent in choosing chunks by attention, and their number."""
        return self._read_histogram("refrag_sensing_seconds", num_requests)

    def read_model(self, name: str) -> float:
        """Return the seconds that a model has computed so far."""
        told = self.triton.get_inference_statistics(name, as_json=True)["model_stats"]
        return _phases(told[0]["inference_stats"])["compute_infer"]

    def _count_requests(self) -> int:
        """Return how many requests the ensemble has passed to its first model."""
        told = self.triton.get_inference_statistics(MODELS[0], as_json=True)["model_stats"]
        return int(told[0]["inference_stats"]["success"].get("count", 0))

    def _read_histogram(self, name: str, num_requests: int, label: str = "") -> tuple[float, int]:
        """Return the histogram's sum and count, once it counts so many requests."""
        deadline = time.monotonic() + METRIC_SECONDS
        while (count := self._read_metric(f"{name}_count", label)) < num_requests:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name} counts {count:g} of {num_requests} requests after {METRIC_SECONDS:g} s; has one failed?"
                )
            time.sleep(POLL_SECONDS)
        return self._read_metric(f"{name}_sum", label), int(count)

    def _read_metric(self, name: str, label: str = "") -> float:
        values = read_metric(self.server, name, label)
        assert values, f"the server tells no {name}"
        return values[0]


def queue_seconds(before: Reading, after: Reading) -> dict[str, float]:
    """Return a request's mean seconds of waiting for each model; for the decoder, from the last model to admission."""
    models = {name: _spent(before, after, name, ("queue",)) for name in MODELS}
    _, admission = _engine_seconds(before, after)
    done = sum(models.values()) + sum(_spent(before, after, name, COMPUTE) for name in MODELS)
    return {**models, "decoder": admission + _unclocked(before, after) - done}


def compute_seconds(before: Reading, after: Reading) -> dict[str, float]:
    """Return a request's mean seconds of computing in each model; in the decoder, from admission to first token."""
    first_token, admission = _engine_seconds(before, after)
    return {**{name: _spent(before, after, name, COMPUTE) for name in MODELS}, "decoder": first_token - admission}


def stage_seconds(before: Reading, after: Reading, ttft: float) -> dict[str, float]:
    """Return a request's mean seconds in each stage; `ttft` is the client's mean time to first token, in seconds."""
    waits, computes = queue_seconds(before, after), compute_seconds(before, after)
    first_token, _ = _engine_seconds(before, after)
    return {
        "client, gRPC": ttft - first_token - _unclocked(before, after),
        **{name: waits[name] + computes[name] for name in MODELS},
        "hand-overs": waits["decoder"],
        "decoder": computes["decoder"],
    }


def _engine_seconds(before: Reading, after: Reading) -> tuple[float, float]:
    """Return the mean seconds from a request's arrival in the ensemble to its first token, and to its admission."""
    count = _count(before, after)
    first_token, admission = ((after.engine[name][0] - before.engine[name][0]) / count for name in ("ttft", "queue"))
    return first_token, admission


def _unclocked(before: Reading, after: Reading) -> float:
    """Return the mean seconds before preprocessing begins to compute, which is when a request's arrival is noted."""
    return _spent(before, after, "preprocessing", ("queue", "compute_input"))


def _spent(before: Reading, after: Reading, model: str, phases: tuple[str, ...]) -> float:
    """Return a request's mean seconds in these phases of a model."""
    seconds = sum(after.models[model][phase] - before.models[model][phase] for phase in phases)
    return seconds / _count(before, after)


def _count(before: Reading, after: Reading) -> int:
    count = after.engine["ttft"][1] - before.engine["ttft"][1]
    assert count > 0, "no request was answered between the readings"
    return count


def _phases(stats: dict[str, dict[str, str]]) -> dict[str, float]:
    return {phase: int(stats.get(phase, {}).get("ns", 0)) / 1e9 for phase in PHASES}
