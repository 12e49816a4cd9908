"""`refrag export`: turn a checkpoint into a model repository that Triton serves as it is.

ONNX models are compared with torch before they are put in place; a failed export leaves the repository as it was.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from refrag.errors import SetupError
from refrag.export.precision import Precision

HELP = "make a model repository out of a checkpoint"
EXTRA = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that holds refrag.json")
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), help="default: %(default)s; may be a new folder"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="arithmetic inside the ONNX models (default: %(default)s); their inputs and outputs are FP32 either way. "
        "fp16 is for GPUs; int8, of the encoder alone, for CPUs",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="PASSAGES", help="file of passages that int8 takes its scales from"
    )
    parser.add_argument(
        "--chunk-size",
        type=int,
        help="deploy another of the checkpoint's trained_chunk_sizes (default: its chunk_size)",
    )
    parser.add_argument(
        "--retrieval", action="store_true", help="add the models that search collections; what is added stays"
    )
    parser.add_argument(
        "--passage-encoder",
        type=Path,
        metavar="FOLDER",
        help="a sentence encoder for collections (default: the base model of the checkpoint's encoder, if it is one; "
        "else they are searched by words alone)",
    )
    parser.add_argument(
        "--tensorrt-llm",
        type=Path,
        metavar="ENGINE",
        help="folder that trtllm-build has written, to decode in the place of torch: the ensemble refrag_trtllm",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="build TensorRT plans of encoder and projector, where tensorrt is installed, else the script that does",
    )


def run(arguments: argparse.Namespace) -> None:
    from refrag.export.repository import export_repository

    try:
        parities = export_repository(
            arguments.checkpoint,
            arguments.repository,
            arguments.precision,
            arguments.chunk_size,
            arguments.calibration,
            arguments.retrieval or arguments.passage_encoder is not None,
            arguments.passage_encoder,
            arguments.tensorrt_llm,
            arguments.tensorrt,
        )
    except OSError as error:
        raise SetupError(f"{arguments.repository} cannot be filled: {error}") from error
    for parity in parities:
        print(parity)
    if arguments.tensorrt:
        print_plans(arguments.repository)
    print(f"{arguments.repository} is ready to serve ({arguments.precision})")
    for note in _retrieval_notes(arguments.repository):
        print(note)


def _retrieval_notes(repository: Path) -> list[str]:
    """Return what is to be known before its collections are served; nothing for a repository without."""
    if not (repository / "retriever").exists():
        return []
    notes = []
    if not (repository / "retriever" / "1" / "checkpoint" / "passage_encoder.json").exists():
        notes.append(
            "collections are searched by words alone: the checkpoint's encoder has no sentence encoder as its base; "
            "--passage-encoder names another"
        )
    if find_spec("lancedb") is None:
        notes.append("collections need lancedb, which is not installed here: pip install 'refrag[retrieval]'")
    return notes


def print_plans(repository: Path) -> None:
    """Tell where the plans are, or how to build them."""
    from refrag.export.tensorrt import SCRIPT, has_tensorrt

    if has_tensorrt():
        print("TensorRT plans are built for this machine's GPU; serve them with --model-config-name tensorrt_plan")
    else:
        print(f"tensorrt is not installed here: {repository / SCRIPT} builds the plans where trtexec is")
