"""The variant of the repository whose decoder is an engine of TensorRT-LLM: `refrag export --tensorrt-llm ENGINE`.

It has the ensemble `refrag_trtllm` in the place of `refrag`, and three models in the place of `decoder`:

    engine_request ─► tensorrt_llm ─► postprocessing

The hand-written files lie in variants/tensorrt_llm; what stands there in capitals is filled in from the engine.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, GenerationConfig

from refrag.config import RefragConfig
from refrag.context.deployed import DECODER
from refrag.decoders.tensorrt_llm import TABLE_TYPES, BuiltEngine, EngineFacts
from refrag.errors import CheckpointError
from refrag.export.parts import SharedParts, build_preprocessing
from refrag.model.tokenizers import load_decoder_tokenizer, load_decoder_vocab_size

TEMPLATES = Path(__file__).parent / "variants" / "tensorrt_llm"
# Models of the usual repository that this one does without: they would load the decoder's weights a second time.
REPLACED = ("decoder", "refrag")
ENGINE_REQUEST, ENGINE, POSTPROCESSING = "engine_request", "tensorrt_llm", "postprocessing"
AROUND_ENGINE = (ENGINE_REQUEST, POSTPROCESSING)
# The model in front of the ensemble, for callers who leave.
WATCHED, GRAPH = "refrag_watched", "refrag_trtllm"


@dataclass(frozen=True)
class EngineVariant:
    """An engine, and what the models around it must know. `of` raises CheckpointError if it is of another decoder."""

    built: BuiltEngine
    facts: EngineFacts

    @classmethod
    def of(cls, engine: BuiltEngine, checkpoint: Path, config: RefragConfig) -> "EngineVariant":
        return cls(engine, facts_of(engine, checkpoint, config))


def facts_of(engine: BuiltEngine, checkpoint: Path, config: RefragConfig) -> EngineFacts:
    """Return what the models around the engine must know; raise CheckpointError if it is of another decoder."""
    decoder = AutoConfig.from_pretrained(checkpoint / DECODER, local_files_only=True).get_text_config()
    found = {"vocab_size": engine.vocab_size, "hidden_size": engine.width}
    for name, expected in {
        "vocab_size": load_decoder_vocab_size(checkpoint),
        "hidden_size": decoder.hidden_size,
    }.items():
        if found[name] != expected:
            raise CheckpointError(
                f"{engine.folder} has a {name} of {found[name]}, the checkpoint's decoder {expected}; build the engine "
                "from this checkpoint: deploy/build_engine.sh"
            )
    eos_ids = read_eos_ids(checkpoint / DECODER)
    if not eos_ids:
        raise CheckpointError(f"{checkpoint / DECODER} names no end token; add eos_token_id to its config.json")
    pad_id = load_decoder_tokenizer(checkpoint).pad_token_id
    return EngineFacts(
        dtype=engine.dtype,
        vocab_size=engine.vocab_size,
        width=engine.width,
        window=min(engine.max_slots, config.max_prompt_slots),
        max_input_slots=engine.max_input_slots,
        max_rows=engine.max_rows,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad_id is None else pad_id,
    )


def read_eos_ids(decoder: Path) -> list[int]:
    """Return the tokens that end the decoder's answers, as transformers reads them from its folder."""
    try:
        config = GenerationConfig.from_pretrained(decoder, local_files_only=True)
    except OSError:
        model = AutoConfig.from_pretrained(decoder, local_files_only=True)
        config = GenerationConfig.from_model_config(model)
    eos = config.eos_token_id
    return list(eos) if isinstance(eos, list) else [] if eos is None else [eos]


def build_part(shared: SharedParts, facts: EngineFacts, target: Path) -> None:
    """Fill the folder of a model around the engine: what it knows of the engine, and the decoder's tokenizer."""
    build_preprocessing(shared, target)
    facts.save(target)


def fill_in(model: Path, engine: BuiltEngine) -> None:
    """Write the engine's values into the model's config.pbtxt, which was just copied."""
    path = model / "config.pbtxt"
    text = path.read_text()
    for name, value in values_of(engine).items():
        text = text.replace(name, value)
    if model.name == WATCHED:
        text = text.replace('"graph" value { string_value: "refrag"', f'"graph" value {{ string_value: "{GRAPH}"')
        text = text.replace(
            '"decoder" value { string_value: "decoder"', f'"decoder" value {{ string_value: "{POSTPROCESSING}"'
        )
    path.write_text(text)


def values_of(engine: BuiltEngine) -> dict[str, str]:
    return {
        "MAX_BATCH_SIZE": str(engine.max_batch_size),
        "TABLE_TYPE": TABLE_TYPES[engine.dtype],
        # Quoted as the text format of protocol buffers wants it.
        '"ENGINE_FOLDER"': json.dumps(str(engine.folder)),
        "REUSES_PREFIXES": str(engine.reuses_prefixes).lower(),
    }


def check_kept_configs(repository: Path, engine: BuiltEngine) -> None:
    """Raise CheckpointError if a config that an earlier export has left is for another engine."""
    kept = {
        ENGINE: (values_of(engine)['"ENGINE_FOLDER"'], TABLE_TYPES[engine.dtype]),
        ENGINE_REQUEST: (TABLE_TYPES[engine.dtype],),
    }
    for model, needed in kept.items():
        path = repository / model / "config.pbtxt"
        if missing := [value for value in needed if value not in path.read_text()]:
            raise CheckpointError(
                f"{path} lacks {', '.join(missing)}: it is for another engine than {engine.folder}; delete it and run "
                "the export again"
            )


def check_variant(repository: Path, engine: BuiltEngine | None) -> None:
    """Raise CheckpointError if the repository holds the models of the other variant."""
    others = (ENGINE,) if engine is None else REPLACED
    if found := [name for name in others if (repository / name / "config.pbtxt").exists()]:
        raise CheckpointError(
            f"{repository} holds {' and '.join(found)}, of a repository with another decoder; export into another "
            "folder with --repository"
        )
