"""Builds a model repository to deploy: `refrag export --checkpoint checkpoints/world`.

    checkpoint ──► ONNX models ──► in int8: calibrated integers ──► parity with torch ──► <repository>/<model>/1/
               └─► parts (refrag.json, tokenizers, policy, decoder) ──┘

With retrieval, the models of export/variants/retrieval join them, and the passage encoder is one more ONNX model.

Everything is built in a temporary folder first, so that a failed export leaves the repository as it was.
"""

import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig

from refrag.config import RefragConfig
from refrag.context.deployed import DECODER
from refrag.decoders.tensorrt_llm import BuiltEngine
from refrag.errors import CheckpointError
from refrag.export import engine as engine_variant
from refrag.export.calibration import Calibration, read_calibration
from refrag.export.engine import EngineVariant
from refrag.export.graphs import CHUNK_ENCODER, PASSAGE_ENCODER, PROJECTOR, export_chunk_encoder, export_projector
from refrag.export.parity import Parity, check_chunk_encoder, check_projector
from refrag.export.parts import (
    SharedParts,
    build_decoder,
    build_expansion_policy,
    build_preprocessing,
    choose_chunk_size,
    fingerprint_of,
)
from refrag.export.passage_encoder import SentenceEncoder, build_passage_encoder, find_sentence_encoder, save_form
from refrag.export.precision import Precision, TracedPrecision
from refrag.export.quantisation import quantise_chunk_encoder
from refrag.export.tensorrt import PLAN_FILE, build_plan, has_tensorrt, plan_jobs, write_script
from refrag.machine.files import move_all
from refrag.model.checkpoint import load_encoder, load_projector
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy_file import load_policy
from refrag.model.projector import Projector
from refrag.model.tokenizers import load_decoder_tokenizer, load_encoder_tokenizer
from refrag.model.whole import whole_checkpoint
from refrag.policies.select import open_trained_policy
from refrag.store.keys import EncoderIdentity

# The hand-written files of the models: package data in a wheel, a link in the checkout.
TEMPLATES = Path(str(files("refrag"))) / "model_repository"
# Those of models that only an export with retrieval adds.
RETRIEVAL_TEMPLATES = Path(__file__).parent / "variants" / "retrieval"
RETRIEVER = "retriever"
RETRIEVAL_MODELS = (RETRIEVER, "passage_store", "refrag_rag")
VERSION = "1"
DECODER_MODEL = "decoder"
# Beside the decoder's part, which is placed last: the path of the checkpoint that all parts are from.
EXPORTED_FROM = "exported_from"
# Hand-written files in a version folder; the rest is built.
WRITTEN_IN_VERSION = ("model.py", ".gitkeep")


@dataclass(frozen=True)
class Retrieval:
    """Parts to add for collections. encoder: of passages and questions, None to search by words alone."""

    encoder: SentenceEncoder | None


@dataclass(frozen=True)
class Source:
    """The parts of a checkpoint to export, checked against each other."""

    directory: Path
    config: RefragConfig
    encoder: ChunkEncoder
    projector: Projector


def export_repository(
    checkpoint: Path,
    repository: Path,
    precision: Precision = "fp32",
    chunk_size: int | None = None,
    calibration: Path | None = None,
    has_retrieval: bool = False,
    passage_encoder: Path | None = None,
    engine: Path | None = None,
    tensorrt: bool = False,
) -> list[Parity]:
    """Fill `repository` from `checkpoint`, and return the error of each ONNX model against torch.

    calibration: file of passages for int8, as JSON lines or as plain text with blank lines between passages.
    has_retrieval: adds the models of collections; a repository that has them keeps them without it too, as they are.
    passage_encoder: folder of a sentence encoder for them, instead of the base model of the checkpoint's encoder.
    engine: folder of an engine of TensorRT-LLM, which decodes in the place of the model `decoder`.
    tensorrt: whether to build TensorRT plans of the ONNX models, or to write the script that does.
    Models that the repository lacks are added as the project ships them. Raises CheckpointError, and leaves an earlier
    export as it was, if the checkpoint does not fit or an ONNX model fails its parity check.
    """
    if has_retrieval and engine is not None:
        raise CheckpointError(
            "an engine of TensorRT-LLM answers in the ensemble refrag_trtllm, which retrieves nothing; export with "
            "--retrieval or with --tensorrt-llm"
        )
    if tensorrt and precision == "int8":
        raise CheckpointError(
            "TensorRT cannot read the encoder in int8, whose products are ONNX Runtime's own; give --precision fp16"
        )
    retrieval = None
    if has_retrieval or _lacks_parts_of_retrieval(repository):
        retrieval = Retrieval(find_sentence_encoder(checkpoint, passage_encoder))
    with whole_checkpoint(checkpoint) as whole:
        built_engine = None if engine is None else BuiltEngine.read(engine)
        source = load_source(whole, chunk_size)
        around = None if built_engine is None else EngineVariant.of(built_engine, source.directory, source.config)
        parities = _export(source, checkpoint, repository, precision, calibration, retrieval, around, tensorrt)
        _renew_plans(source, repository, tensorrt)
        return parities


def _lacks_parts_of_retrieval(repository: Path) -> bool:
    """Return whether an earlier export added the models of collections, and was stopped before it filled them."""
    retriever = repository / RETRIEVER
    return (retriever / "config.pbtxt").exists() and not (retriever / VERSION / "checkpoint").exists()


def _renew_plans(source: Source, repository: Path, tensorrt: bool) -> None:
    """Remove plans of an earlier export; build new ones, or write the script that does, if they are wanted."""
    jobs = plan_jobs(repository, VERSION, source.config.encoder_length, source.projector.up.in_features)
    for job in jobs:
        (job.folder / PLAN_FILE).unlink(missing_ok=True)
    if tensorrt and has_tensorrt():
        for job in jobs:
            build_plan(job)
    elif tensorrt:
        write_script(repository, jobs)


def _export(
    source: Source,
    checkpoint: Path,
    repository: Path,
    precision: Precision,
    calibration: Path | None,
    retrieval: Retrieval | None,
    engine: EngineVariant | None,
    tensorrt: bool,
) -> list[Parity]:
    chunks = _read_calibration(source, precision, calibration)
    add_missing_models(repository, retrieval, None if engine is None else engine.built)
    # Inside a model's folder: Triton reads only numbered sub-folders there, and renames need one file system.
    with tempfile.TemporaryDirectory(dir=repository / CHUNK_ENCODER.name, prefix=".export-") as scratch:
        built, replaced = Path(scratch, "built"), Path(scratch, "replaced")
        parities = build_graphs(source, built, precision, chunks)
        # Vectors by other kernels are not quite the same, and are stored under another name.
        arithmetic = f"{precision} tensorrt" if tensorrt else precision
        build_parts(source, built, arithmetic if chunks is None else f"{precision} {chunks.digest}", engine)
        if engine is None:
            (_version_folder(built, DECODER_MODEL) / "checkpoint" / EXPORTED_FROM).write_text(
                f"{checkpoint.resolve()}\n"
            )
        if retrieval is not None:
            parities += build_retrieval(retrieval, built, precision)
        place(built, repository, replaced)
    return parities


def load_source(directory: Path, chunk_size: int | None) -> Source:
    """Load all parts but the decoder's weights, which are only copied and might not fit in memory.

    Raises CheckpointError if the parts do not fit together or were not trained with this chunk size.
    """
    config = RefragConfig.load(directory)
    load_decoder_tokenizer(directory)
    config = choose_chunk_size(config, chunk_size, load_encoder_tokenizer(directory) is not None)
    source = Source(directory, config, load_encoder(directory, config), load_projector(directory))
    _check_widths(source)
    return source


def add_missing_models(repository: Path, retrieval: Retrieval | None = None, engine: BuiltEngine | None = None) -> None:
    """Copy the hand-written files (config.pbtxt, configs/, model.py) of every model that `repository` lacks.

    Raises CheckpointError if it holds the models of another decoder, or a config for another engine.
    """
    engine_variant.check_variant(repository, engine)
    for model in _templates(retrieval, engine):
        target = repository / model.name
        if not (target / "config.pbtxt").exists():
            shutil.copytree(model, target, ignore=_ignore_built_files, dirs_exist_ok=True)
            if engine is not None:
                engine_variant.fill_in(target, engine)
    if engine is not None:
        engine_variant.check_kept_configs(repository, engine)
    (repository / CHUNK_ENCODER.name).mkdir(parents=True, exist_ok=True)


def _templates(retrieval: Retrieval | None, engine: BuiltEngine | None) -> list[Path]:
    """Return the folders of the hand-written models that such a repository has."""
    optional = [model.name for model in RETRIEVAL_TEMPLATES.iterdir()]
    # A checkout's own repository, where the templates are, may have been exported with retrieval.
    models = [path.parent for path in TEMPLATES.glob("*/config.pbtxt") if path.parent.name not in optional]
    if retrieval is not None:
        encoder = [] if retrieval.encoder is None else [PASSAGE_ENCODER.name]
        models += [RETRIEVAL_TEMPLATES / name for name in (*RETRIEVAL_MODELS, *encoder)]
    if engine is not None:
        models = [model for model in models if model.name not in engine_variant.REPLACED]
        models += [path.parent for path in engine_variant.TEMPLATES.glob("*/config.pbtxt")]
    return sorted(models)


def build_graphs(source: Source, built: Path, precision: Precision, chunks: Calibration | None) -> list[Parity]:
    """Export encoder and projector to `built`, and return the error of each ONNX model against torch.

    chunks: given for int8. Only the encoder is quantised; the projector is small and stays in FP32.
    """
    traced: TracedPrecision = "fp32" if precision == "int8" else precision
    encoder_path = _version_folder(built, CHUNK_ENCODER.name) / "model.onnx"
    projector_path = _version_folder(built, PROJECTOR.name) / "model.onnx"
    export_chunk_encoder(source.encoder, encoder_path, traced, source.config.encoder_length)
    export_projector(source.projector, projector_path, traced)
    length = source.config.encoder_length
    parities = [
        check_chunk_encoder(encoder_path, source.encoder, length, traced),
        check_projector(projector_path, source.projector, source.encoder, length, traced),
    ]
    if chunks is not None:
        quantise_chunk_encoder(encoder_path, chunks.scales)
        parities.append(check_chunk_encoder(encoder_path, source.encoder, length, precision, chunks.checks))
    return parities


def build_parts(source: Source, built: Path, arithmetic: str, engine: EngineVariant | None = None) -> None:
    fingerprint = fingerprint_of(source.directory, source.config, arithmetic)
    encoder = EncoderIdentity(fingerprint, source.encoder.width)
    shared = SharedParts.of(source.directory, source.config, encoder)
    for model in ("preprocessing", "chunk_store"):
        build_preprocessing(shared, _version_folder(built, model) / "checkpoint")
    build_expansion_policy(shared, source.directory, _version_folder(built, "expansion_policy") / "checkpoint")
    if engine is None:
        build_decoder(source.directory, source.config, _version_folder(built, DECODER_MODEL) / "checkpoint")
        return
    for model in engine_variant.AROUND_ENGINE:
        engine_variant.build_part(shared, engine.facts, _version_folder(built, model) / "checkpoint")


def build_retrieval(retrieval: Retrieval, built: Path, precision: Precision) -> list[Parity]:
    """Build what the models of collections need, and return the error of the passage encoder if there is one."""
    folders = [_version_folder(built, model) / "checkpoint" for model in (RETRIEVER, "passage_store")]
    for folder in folders:
        folder.mkdir()
    if retrieval.encoder is None:
        return []
    path = _version_folder(built, PASSAGE_ENCODER.name) / "model.onnx"
    form, parity = build_passage_encoder(retrieval.encoder, path, precision)
    for folder in folders:
        save_form(retrieval.encoder, form, folder)
    return [parity]


def place(built: Path, repository: Path, replaced: Path) -> None:
    """Move each built file or folder to its place, and what it replaces to `replaced`; renames only, so it is quick.

    If one cannot be moved, all go back to where they were. The decoder's comes last: by it the export counts as done.
    """
    entries = sorted(built.glob(f"*/{VERSION}/*"), key=lambda entry: (entry.parts[-3] == DECODER_MODEL, entry))
    moves: list[tuple[Path, Path]] = []
    for entry in entries:
        target = repository / entry.relative_to(built)
        if target.exists():
            moves.append((target, replaced / entry.relative_to(built)))
        moves.append((entry, target))
    move_all(moves)


def _read_calibration(source: Source, precision: Precision, passages: Path | None) -> Calibration | None:
    if (precision == "int8") != (passages is not None):
        raise CheckpointError(
            "int8 and calibration go together: give --precision int8 and --calibration with a file of passages like "
            "those that will be served, or neither"
        )
    return None if passages is None else read_calibration(passages, source.directory, source.config)


def _check_widths(source: Source) -> None:
    encoder_width, decoder_width = source.projector.up.in_features, source.projector.down.out_features
    policy = load_policy(source.directory, source.config)
    open_trained_policy(source.config, policy)
    decoder_config = AutoConfig.from_pretrained(source.directory / DECODER, local_files_only=True)
    found = {
        "encoder": (source.encoder.width, encoder_width),
        "decoder": (decoder_config.get_text_config().hidden_size, decoder_width),
    }
    if policy is not None:
        found["policy"] = policy.question_in.in_features, encoder_width
    for part, (width, expected) in found.items():
        if width != expected:
            raise CheckpointError(
                f"the {part} of {source.directory} is {width} wide and the projector needs {expected}; "
                "they are not of one training run"
            )


def _version_folder(root: Path, model: str) -> Path:
    folder = root / model / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _ignore_built_files(folder: str, names: list[str]) -> list[str]:
    if Path(folder).name == VERSION:
        return [name for name in names if name not in WRITTEN_IN_VERSION]
    return [name for name in names if name == "__pycache__" or name.startswith(".export-")]
