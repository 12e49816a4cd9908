"""`refrag decoders use` rewrites the parameters of one model, and nothing else."""

import shutil
from pathlib import Path

import pytest

from refrag.errors import SetupError
from refrag.serving.choose_decoder import PARAMETER, TEMPLATE, choose_decoder
from refrag_client.cli.main import main


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "decoder").mkdir()
    shutil.copyfile(TEMPLATE, tmp_path / "decoder" / "config.pbtxt")
    return tmp_path


def parameters(repository):
    text = (repository / "decoder" / "config.pbtxt").read_text()
    return {found[1]: found[2].strip('"') for found in PARAMETER.finditer(text)}


def test_vllm_is_named_with_its_own_parameters_and_its_environment(repository):
    choose_decoder(repository, "vllm", {"max_active": "8"}, Path("/environments/vllm/server"))
    named = parameters(repository)
    assert (named["decoder_backend"], named["max_active"], named["kv_cache_mib"]) == ("vllm", "8", "1024")
    assert named["EXECUTION_ENV_PATH"] == "/environments/vllm/server"
    assert named["default_max_tokens"] == "64"
    assert "block_size" not in named


@pytest.mark.parametrize("model", ["model_repository/preprocessing", "export/variants/tensorrt_llm/engine_request"])
def test_conversations_leave_the_answer_that_the_decoder_gives_by_default(model):
    root = Path(__file__).parents[2]
    configs = [(path / "config.pbtxt").read_text() for path in (TEMPLATE.parent, root / model)]
    decoder, other = ({found[1]: found[2] for found in PARAMETER.finditer(text)} for text in configs)
    assert other["default_max_tokens"] == decoder["default_max_tokens"]


def test_torch_again_is_the_config_as_it_was_shipped(repository):
    choose_decoder(repository, "vllm", {}, Path("/environments/vllm/server"))
    choose_decoder(repository, "torch", {}, None)
    assert (repository / "decoder" / "config.pbtxt").read_text() == TEMPLATE.read_text()


def test_what_a_deployer_set_for_all_decoders_stays(repository):
    path = repository / "decoder" / "config.pbtxt"
    path.write_text(path.read_text().replace('string_value: "64"', 'string_value: "99"'))
    choose_decoder(repository, "vllm", {}, None)
    assert parameters(repository)["default_max_tokens"] == "99"


def test_a_value_with_quotes_survives(repository):
    given = "compilation_config='{\"level\": 0}'"
    choose_decoder(repository, "vllm", {"engine_arguments": given}, None)
    text = (repository / "decoder" / "config.pbtxt").read_text()
    assert r'"compilation_config=' in text
    assert r"{\"level\": 0}" in text


@pytest.mark.parametrize(
    ("decoder", "values", "message"),
    [
        ("vlm", {}, "decoder_backend is 'vlm'; allowed: torch, vllm"),
        ("vllm", {"max_activ": "8"}, r"unknown parameters \['max_activ'\]"),
        ("vllm", {"max_active": "many"}, "must be a whole number"),
        ("vllm", {"max_active": "0"}, "max_active is 0"),
    ],
)
def test_what_cannot_be_changes_nothing(repository, decoder, values, message):
    with pytest.raises(SetupError, match=message):
        choose_decoder(repository, decoder, values, None)
    assert (repository / "decoder" / "config.pbtxt").read_text() == TEMPLATE.read_text()


def test_a_config_of_another_form_is_refused(repository):
    path = repository / "decoder" / "config.pbtxt"
    path.write_text(path.read_text().replace('parameters { key: "dtype"', 'parameters {\n key: "dtype"'))
    with pytest.raises(SetupError, match="a line each"):
        choose_decoder(repository, "vllm", {}, None)


def test_a_folder_without_a_repository_is_refused(tmp_path):
    with pytest.raises(SetupError, match="refrag export"):
        choose_decoder(tmp_path, "torch", {}, None)


def test_the_command_refuses_an_environment_that_is_not_there(repository, tmp_path, capsys):
    code = main(["decoders", "use", "vllm", "--repository", str(repository), "--folder", str(tmp_path / "none")])
    assert code == 1
    assert "make it with `refrag decoders install`" in capsys.readouterr().err


def test_the_command_sets_parameters(repository, capsys):
    assert main(["decoders", "use", "torch", "--repository", str(repository), "--set", "max_active=7"]) == 0
    assert parameters(repository)["max_active"] == "7"
    assert main(["decoders", "use", "torch", "--repository", str(repository), "--set", "max_active"]) == 2
