"""Triton completes configs only where a model's leaves something out."""

from pathlib import Path

import pytest

from refrag.embedded.model_configs import are_complete
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


def test_a_variant_counts_where_a_model_has_one(tmp_path):
    write(tmp_path, "one", WHOLE)
    write(tmp_path, "one", "max_batch_size: 4\n", "bare")
    write(tmp_path, "other", WHOLE)
    assert are_complete(tmp_path) and are_complete(tmp_path, "missing")
    assert not are_complete(tmp_path, "bare")
