"""TensorRT engines of the chunk encoder and the projector: `refrag export --tensorrt`.

    model.onnx ── tensorrt, where it is installed ──► model.plan
               └─ trtexec, in NVIDIA's container ───► model.plan    by build_plans.sh, which the export writes

The ONNX models carry their types in themselves, and networks are built strongly typed: nothing else is left in TensorRT
11. `tritonserver --model-config-name=tensorrt_plan` serves the plans. Never run on a GPU by this project.
"""

import importlib.util
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refrag.errors import SetupError
from refrag.export.graphs import BATCH, CHUNK_ENCODER, LENGTH, PROJECTOR, Graph

ONNX_FILE, PLAN_FILE, SCRIPT = "model.onnx", "model.plan", "build_plans.sh"
# The max_batch_size of both models' config.pbtxt; the batch for which kernels are chosen.
MAX_CHUNKS, USUAL_CHUNKS = 8192, 256
CONTAINER = "nvcr.io/nvidia/tensorrt:25.10-py3"

# Smallest, usual and largest shape.
Shapes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class PlanJob:
    """A plan to build. folder: of the model's version. shapes: of each input, by name."""

    folder: Path
    shapes: Mapping[str, Shapes]

    @classmethod
    def of(cls, graph: Graph, folder: Path, encoder_length: int, encoder_width: int) -> "PlanJob":
        """encoder_length: the longest row that the encoder is sent. encoder_width: of chunk vectors."""
        sizes = {BATCH: (1, USUAL_CHUNKS, MAX_CHUNKS), LENGTH: (1, encoder_length, encoder_length)}
        shapes = {}
        for name, (batch, feature) in graph.inputs.items():
            widths = sizes.get(feature, (encoder_width,) * 3)
            smallest, usual, largest = zip(sizes[batch], widths, strict=True)
            shapes[name] = (smallest, usual, largest)
        return cls(folder, shapes)


def plan_jobs(repository: Path, version: str, encoder_length: int, encoder_width: int) -> list[PlanJob]:
    return [
        PlanJob.of(graph, repository / graph.name / version, encoder_length, encoder_width)
        for graph in (CHUNK_ENCODER, PROJECTOR)
    ]


def has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


def build_plan(job: PlanJob) -> Path:
    """Build the plan with the installed tensorrt, for this machine's GPU; raise SetupError with what it says."""
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(_network_flags(tensorrt))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(job.folder / ONNX_FILE)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise SetupError(f"TensorRT cannot read {job.folder / ONNX_FILE}: {errors}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for name, shapes in job.shapes.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SetupError(f"TensorRT could not build {job.folder / PLAN_FILE}; its messages above say why")
    (job.folder / PLAN_FILE).write_bytes(bytes(plan))
    return job.folder / PLAN_FILE


def write_script(repository: Path, jobs: list[PlanJob]) -> Path:
    """Write the script that builds the plans with trtexec, beside the models' folders."""
    commands = "\n".join(_trtexec_line(job, repository) for job in jobs)
    path = repository / SCRIPT
    path.write_text(_HEAD.format(container=CONTAINER, script=SCRIPT) + commands + "\n")
    path.chmod(0o755)
    return path


def trtexec_arguments(job: PlanJob) -> list[str]:
    """Return the arguments of trtexec, with file names relative to the version's folder."""
    options = [f"--onnx={ONNX_FILE}", f"--saveEngine={PLAN_FILE}"]
    for index, option in enumerate(("minShapes", "optShapes", "maxShapes")):
        sizes = (f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in job.shapes.items())
        options.append(f"--{option}={','.join(sizes)}")
    return options


def _trtexec_line(job: PlanJob, repository: Path) -> str:
    folder = shlex.quote(job.folder.relative_to(repository).as_posix())
    return f"(cd {folder} && trtexec {shlex.join(trtexec_arguments(job))} $typed)"


def _network_flags(tensorrt: Any) -> int:
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # Releases without the flag know no other networks.
    return 0 if flag is None else 1 << int(flag)


_HEAD = """#!/usr/bin/env bash
# Builds the TensorRT plans of this repository, for the GPU that it runs on:
#
#   docker run --rm --gpus all -v "$PWD":/models -w /models {container} ./{script}
#   tritonserver --model-repository=… --model-config-name=tensorrt_plan
set -euo pipefail
cd "$(dirname "$0")"

# Types are those of the ONNX models. TensorRT 10 has to be told so, 11 knows nothing else.
typed=$(trtexec --help | grep -o -m1 -e --stronglyTyped || true)
"""
