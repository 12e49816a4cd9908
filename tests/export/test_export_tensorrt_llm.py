"""The repository around an engine of TensorRT-LLM: its tensors are NVIDIA's; engines that do not fit are refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_helpers import read_config
from tensorrt_llm_tensors import (
    INPUTS,
    NEEDED_INPUTS,
    NEEDED_OUTPUTS,
    NEEDED_PARAMETERS,
    OLDER_NAMES,
    OUTPUTS,
    SCALARS,
    TABLE,
)

from refrag.decoders.tensorrt_llm import TABLE_TYPES, BuiltEngine, EngineFacts, lay_out_words
from refrag.errors import CheckpointError
from refrag.export.repository import TEMPLATES, export_repository

ROOT = Path(__file__).parents[2]


def describe_engine(dtype="bfloat16", version="1.2.0", vocab_size=300, hidden_size=16, **build):
    """Return a real engine's config.json for the fixtures' decoder; `build` changes its build_config."""
    limits = {
        "max_batch_size": 4,
        "max_seq_len": 60,
        "max_input_len": 50,
        "max_prompt_embedding_table_size": 4 * 40,
        "plugin_config": {"use_paged_context_fmha": True},
    }
    model = {"dtype": dtype, "vocab_size": vocab_size, "hidden_size": hidden_size}
    return {"version": version, "pretrained_config": model, "build_config": {**limits, **build}}


@pytest.fixture
def engine(tmp_path):
    """Writes an engine's folder."""

    def write(**description) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(describe_engine(**description)))
        return folder

    return write


@pytest.fixture(scope="module")
def around_engine(checkpoint, tmp_path_factory):
    """Return the repository around an engine in bfloat16."""
    folder = tmp_path_factory.mktemp("around")
    (folder / "engine").mkdir()
    (folder / "engine" / "config.json").write_text(json.dumps(describe_engine()))
    export_repository(checkpoint, folder / "repository", engine=folder / "engine")
    return folder / "repository"


def tensors(config, side):
    kinds = (
        config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type.values_by_number
    )
    return {each.name: (kinds[each.data_type].name, list(each.dims)) for each in getattr(config, side)}


def test_every_tensor_of_the_engine_is_one_of_nvidias(around_engine):
    config = read_config("tensorrt_llm", repository=around_engine)
    expected = {name: (kind.replace(TABLE, "TYPE_BF16"), dims) for name, (kind, dims) in INPUTS.items()}
    found = tensors(config, "input")
    assert found == {name: expected[name] for name in found}
    assert {each.name for each in config.input if not each.optional} == NEEDED_INPUTS
    assert {each.name for each in config.input if each.HasField("reshape")} == set(found) & set(SCALARS)
    outputs = tensors(config, "output")
    assert outputs == {name: OUTPUTS[name] for name in outputs}
    assert set(outputs) >= NEEDED_OUTPUTS
    assert set(config.parameters) >= NEEDED_PARAMETERS
    assert not set(found) & set(OLDER_NAMES.values())


def test_what_is_sent_to_the_engine_has_its_types_and_a_batch_of_one(around_engine):
    sent = tensors(read_config("engine_request", repository=around_engine), "output")
    taken = tensors(read_config("tensorrt_llm", repository=around_engine), "input")
    for name, (kind, dims) in sent.items():
        engine_kind, engine_dims = taken[name.removeprefix("engine_")]
        assert (kind, dims) == (engine_kind, [-1, *engine_dims])


def test_the_ensemble_has_the_inputs_and_outputs_of_the_usual_one(around_engine):
    usual, config = read_config("refrag"), read_config("refrag_trtllm", repository=around_engine)
    # An engine shows neither its attention nor its logits.
    expected = [tensor for tensor in usual.input if tensor.name not in ("sense_tokens", "shadow_fraction")]
    assert list(config.input) == expected
    assert config.output == usual.output
    watched = read_config("refrag_watched", repository=around_engine)
    named = {name: value.string_value for name, value in watched.parameters.items()}
    assert (named["graph"], named["decoder"]) == ("refrag_trtllm", "postprocessing")


def test_the_repository_holds_no_weights_of_the_decoder_and_says_what_the_engine_is(around_engine, checkpoint):
    models = {path.parent.name for path in around_engine.glob("*/config.pbtxt")}
    usual = {path.parent.name for path in TEMPLATES.glob("*/config.pbtxt")}
    around = {"refrag_trtllm", "engine_request", "tensorrt_llm", "postprocessing"}
    assert models == usual - {"decoder", "refrag"} | around
    facts = EngineFacts.load(around_engine / "postprocessing" / "1" / "checkpoint")
    assert (facts.dtype, facts.window, facts.max_input_slots, facts.max_rows) == ("bfloat16", 60, 50, 40)
    assert facts.eos_ids and facts.width == 16
    config = (around_engine / "tensorrt_llm" / "config.pbtxt").read_text()
    assert not re.search(r"MAX_BATCH_SIZE|TABLE_TYPE|ENGINE_FOLDER|REUSES_PREFIXES", config)


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({"version": "0.16.0"}, "built by TensorRT-LLM 0.16.0; build it with 1.0 to 1.2"),
        ({"version": "1.3.0"}, "built by TensorRT-LLM 1.3.0"),
        ({"version": "main"}, "built by TensorRT-LLM main"),
        ({"dtype": "fp8"}, "computes in fp8; build it in one of float32"),
        ({"max_prompt_embedding_table_size": 0}, "takes no chunk embeddings"),
        ({"vocab_size": 32000}, "has a vocab_size of 32000, the checkpoint's decoder 300"),
        ({"hidden_size": 4096}, "has a hidden_size of 4096, the checkpoint's decoder 16"),
        ({"max_batch_size": None}, "config.json cannot be read"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_by_name(checkpoint, engine, tmp_path, description, named):
    with pytest.raises(CheckpointError, match=named):
        export_repository(checkpoint, tmp_path / "new", engine=engine(**description))


def test_a_folder_without_an_engine_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="name the folder that trtllm-build has written"):
        export_repository(checkpoint, tmp_path / "new", engine=tmp_path)


def test_a_repository_of_another_decoder_is_left_alone(checkpoint, engine, repository, around_engine):
    with pytest.raises(CheckpointError, match="holds decoder and refrag"):
        export_repository(checkpoint, repository, engine=engine())
    with pytest.raises(CheckpointError, match="holds tensorrt_llm"):
        export_repository(checkpoint, around_engine)


def test_a_config_that_was_left_for_another_engine_is_refused(checkpoint, engine, around_engine):
    with pytest.raises(CheckpointError, match="it is for another engine"):
        export_repository(checkpoint, around_engine, engine=engine(dtype="float16"))


def test_words_are_laid_out_as_ids_and_then_their_ends():
    assert lay_out_words([[5, 6], [7]]).tolist() == [[[5, 6, 7], [2, 3, -1]]]
    assert lay_out_words([]).tolist() == [[[0], [-1]]]
    assert lay_out_words([[5]]).dtype == np.int32


def test_the_folder_of_an_engine_tells_its_limits(engine):
    built = BuiltEngine.read(engine(dtype="float16", max_prompt_embedding_table_size=400))
    assert (built.max_rows, built.release, TABLE_TYPES[built.dtype]) == (100, "1.2.0", "TYPE_FP16")
    assert built.reuses_prefixes


def test_the_build_script_tells_nvidias_programs_what_the_checkpoint_needs(exported, tmp_path):
    """It runs here with programs that note what they are told."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    convert = tmp_path / "examples" / "models" / "core" / "llama" / "convert_checkpoint.py"
    convert.parent.mkdir(parents=True)
    convert.write_text(f"import sys\nopen({str(notes)!r}, 'a').write('convert ' + ' '.join(sys.argv[1:]) + '\\n')\n")
    programs.mkdir()
    (programs / "trtllm-build").write_text(f'#!/bin/sh\necho "build $*" >> {notes}\n')
    (programs / "trtllm-build").chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "EXAMPLES": str(tmp_path / "examples")}
    subprocess.run(
        [ROOT / "deploy" / "build_engine.sh", exported, tmp_path / "engine"],
        check=True,
        env={**environment, "DTYPE": "float16", "MAX_BATCH": "4", "MAX_CHUNKS": "40"},
    )
    converted, built = notes.read_text().splitlines()
    assert f"--model_dir {exported}/decoder/1/checkpoint/decoder" in converted
    assert converted.endswith("--dtype float16")
    assert f"--output_dir {tmp_path}/engine --max_batch_size 4 --max_input_len 64 --max_seq_len 64" in built
    assert "--max_prompt_embedding_table_size 160 " in built
    assert built.endswith("--use_paged_context_fmha enable")
