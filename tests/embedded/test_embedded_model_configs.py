"""Triton completes configs only where a model's leaves something out."""

from pathlib import Path

import pytest

from refrag.embedded.model_configs import are_complete
from refrag.embedded.run import build_command
from refrag.embedded.runtime import Wheel
from refrag.embedded.settings import ServerSettings
from refrag.export.repository import TEMPLATES

WHOLE = 'name: "m"\nmax_batch_size: 0\ninput [ { name: "a" } ]\noutput {\n  name: "b"\n}\n'


def write(repository: Path, model: str, text: str, config_name: str | None = None) -> None:
    path = repository / model / ("config.pbtxt" if config_name is None else f"configs/{config_name}.pbtxt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def variants() -> list[str | None]:
    return [None, *sorted({path.stem for path in TEMPLATES.glob("*/configs/*.pbtxt")})]


@pytest.mark.parametrize("config_name", variants())
def test_the_projects_own_models_say_all(config_name):
    assert are_complete(TEMPLATES, config_name)


@pytest.mark.parametrize("left_out", ["max_batch_size: 0\n", 'input [ { name: "a" } ]\n', 'output {\n  name: "b"\n}\n'])
def test_what_a_model_leaves_out_is_to_be_completed(left_out, tmp_path):
    write(tmp_path, "whole", WHOLE)
    assert are_complete(tmp_path)
    write(tmp_path, "part", WHOLE.replace(left_out, f"# {left_out}"))
    assert not are_complete(tmp_path)


def test_a_model_without_a_config_is_to_be_completed(tmp_path):
    write(tmp_path, "whole", WHOLE)
    (tmp_path / "bare" / "1").mkdir(parents=True)
    assert not are_complete(tmp_path)


def test_a_model_whose_code_completes_its_config_is_asked(tmp_path):
    write(tmp_path, "python", WHOLE)
    (tmp_path / "python" / "1").mkdir()
    (tmp_path / "python" / "1" / "model.py").write_text("class TritonPythonModel: ...")
    assert are_complete(tmp_path)
    (tmp_path / "python" / "1" / "model.py").write_text("def auto_complete_config(config): ...")
    assert not are_complete(tmp_path)


@pytest.mark.parametrize("argument", ["--model-control-mode=poll", "--model-repository=more", "--log-verbose=1"])
def test_models_that_the_repository_does_not_hold_yet_may_be_completed(argument, tmp_path):
    write(tmp_path, "whole", WHOLE)
    settings = ServerSettings(tmp_path, server_arguments=(argument,))
    command = build_command(Wheel("24.10", Path("root"), Path("libraries")), settings, tmp_path, "prefix")
    assert ("--disable-auto-complete-config" in command) == argument.startswith("--log")


def test_a_variant_counts_where_a_model_has_one(tmp_path):
    write(tmp_path, "one", WHOLE)
    write(tmp_path, "one", "max_batch_size: 4\n", "bare")
    write(tmp_path, "other", WHOLE)
    assert are_complete(tmp_path) and are_complete(tmp_path, "missing")
    assert not are_complete(tmp_path, "bare")
