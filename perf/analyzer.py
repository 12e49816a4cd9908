"""Runs NVIDIA's perf_analyzer, which comes with tritonclient, against the served graph, and reads its export.

The binary needs two libraries that the server's wheel carries under other names, so we give it a folder of links with
the names that it asks for. For an FP32 output without elements it exports whatever lies in memory there, and the export
ends early if that is no number. So it asks an ensemble of its own, `refrag` without its FP32 outputs, which have no
elements in most responses.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from refrag.embedded.runtime import find_wheel
from refrag.errors import SetupError

# The name that the binary asks for, and the first part of the wheel's name.
LIBRARIES = {"libb64.so.0d": "libb64-", "libcudart.so.12": "libcudart-"}
ENSEMBLE, MEASURED = "refrag", "refrag_measured"


@dataclass(frozen=True)
class Load:
    """A level of load: either a number of requests at a time, or a number per second."""

    concurrency: int | None = None
    requests_per_second: float | None = None

    @property
    def options(self) -> list[str]:
        if self.concurrency is not None:
            return ["--concurrency-range", str(self.concurrency)]
        return ["--request-rate-range", str(self.requests_per_second)]

    @property
    def name(self) -> str:
        return f"{self.concurrency} at a time" if self.concurrency is not None else f"{self.requests_per_second:g}/s"


@dataclass(frozen=True)
class Timing:
    """Seconds at which a request was sent and at which each of its responses with outputs came."""

    sent: float
    responses: tuple[float, ...]

    @property
    def ttft(self) -> float:
        return self.responses[0] - self.sent

    @property
    def total(self) -> float:
        return self.responses[-1] - self.sent

    @property
    def inter_token(self) -> float:
        """Mean seconds between two responses."""
        return (self.responses[-1] - self.responses[0]) / max(1, len(self.responses) - 1)


def find_binary() -> Path:
    """Return the path of perf_analyzer; raise SetupError, which says how to install it, if it is missing."""
    beside_python = Path(sys.executable).with_name("perf_analyzer")
    found = beside_python if beside_python.exists() else shutil.which("perf_analyzer")
    if found is None:
        raise SetupError("perf_analyzer is missing; install it with `pip install tritonclient==2.51.0`")
    return Path(found)


def add_measured(repository: Path) -> None:
    """Add the ensemble that `run_analyzer` asks to a repository that is not served yet."""
    config = text_format.Parse((repository / ENSEMBLE / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    config.name = MEASURED
    hidden = {output.name for output in config.output if output.data_type == model_config_pb2.TYPE_FP32}
    kept = [output for output in config.output if output.name not in hidden]
    del config.output[:]
    config.output.extend(kept)
    for step in config.ensemble_scheduling.step:
        for name, tensor in list(step.output_map.items()):
            if tensor in hidden:
                del step.output_map[name]
    folder = repository / MEASURED
    # An ensemble's version holds no file.
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def run_analyzer(address: str, requests: Sequence[dict[str, Any]], load: Load) -> list[Timing]:
    """Send each request once, streaming, and return when its responses came; raise SetupError if any failed.

    The repository that is served must have been through `add_measured`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, export = folder / "requests.json", folder / "export.json"
        data.write_text(json.dumps({"data": list(requests)}))
        command = [str(find_binary()), "-m", MEASURED, "-u", address, "-i", "grpc", "--streaming", "--async"]
        command += ["--input-data", str(data), *load.options]
        command += ["--request-count", str(len(requests)), "--profile-export-file", str(export)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(folder))
        if done.returncode != 0 or not export.exists():
            # The reason comes first; the whole usage text follows it.
            raise SetupError(f"perf_analyzer ended with {done.returncode}:\n{done.stdout[-500:]}{done.stderr[:500]}")
        return read_export(export.read_text(), len(requests))


def read_export(text: str, num_requests: int) -> list[Timing]:
    """Return the timings of the export's only experiment; raise SetupError if any request has no response.

    Responses without outputs are left out: they only mark the end of a stream.
    """
    try:
        [experiment] = json.loads(text)["experiments"]
    except ValueError as error:
        raise SetupError(
            f"perf_analyzer's export is no JSON ({error}); does an FP32 output have no elements?"
        ) from None
    timings = [
        Timing(
            request["timestamp"] / 1e9,
            tuple(
                time / 1e9
                for time, outputs in zip(request["response_timestamps"], request["response_outputs"], strict=True)
                if outputs
            ),
        )
        for request in experiment["requests"]
    ]
    num_answered = sum(bool(timing.responses) for timing in timings)
    if num_answered < num_requests:
        raise SetupError(f"{num_answered} of {num_requests} requests were answered; the server's log tells why")
    return timings


def _environment(folder: Path) -> dict[str, str]:
    wheel = find_wheel()
    if wheel is None:
        raise SetupError("nvidia-pytriton is missing, whose libraries perf_analyzer needs; run `make install`")
    libraries = folder / "libraries"
    libraries.mkdir()
    for name, begin in LIBRARIES.items():
        (libraries / name).symlink_to(next(wheel.libraries.glob(f"{begin}*")))
    path = os.pathsep.join([str(libraries), str(wheel.libraries)])
    return {**os.environ, "LD_LIBRARY_PATH": path}
