"""A recipe over base models: what trains of them is an adapter, from one run to the next and in what is saved."""

import pytest
import torch
import yaml
from question_files import ROW, write_rows
from tiny import make_tiny_checkpoint, tiny_pair

from refrag.errors import TrainingError
from refrag.model.adapters import adapter_state
from refrag.model.backbones import has_adapter, is_of_adapter
from refrag.model.checkpoint import load_checkpoint
from refrag.training.pair import take_chunk_sizes
from refrag.training.preset import Preset
from refrag.training.recipe import CHECKPOINT, load_run, summarise_runs, train_all

pytestmark = pytest.mark.usefixtures("accelerator_of_module")

ONE_STEP = {"num_steps": 1, "learning_rate": 1e-2}
SMALL = {"optimisation": ONE_STEP, "tokens_per_step": 200}
TEXT = {**SMALL, "sources": [{"kind": "world"}]}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    checkpoint = make_tiny_checkpoint(width=32, num_layers=1)
    checkpoint.save(folder)
    checkpoint.decoder_tokenizer.save_pretrained(folder / "encoder")
    rows = write_rows(folder, [ROW])
    names = {
        part: {"pretrained": {"folder": str(folder / part)}, "adapter": {"rank": 2, "alpha": 4, "dropout": 0.5}}
        for part in ("decoder", "encoder")
    }
    pair = {**tiny_pair(width=32, num_layers=1).model_dump(), **names}
    pair |= {"pooling": "ordered", "vector_width": 48, "trained_chunk_sizes": [16]}
    runs = {
        "recover": {**TEXT, "stage": "recover"},
        "reconstruct": {**TEXT, "stage": "reconstruct", "start": "recover", "decoder_trains": True}
        | {"curriculum": {"num_chunks": [1, 2]}},
        "finetune": {**SMALL, "stage": "finetune", "start": "reconstruct", "plain_share": 0.0}
        | {"questions": {"files": [{"path": rows.name}]}},
    }
    return Preset.model_validate(
        {"description": "", "data": str(folder), "pair": pair, "runs": runs, "result": "finetune"}
    )


@pytest.fixture(scope="module")
def runs(preset, tmp_path_factory, accelerator_of_module):
    folder = tmp_path_factory.mktemp("runs")
    train_all(preset, folder)
    return folder


def parts_of(checkpoint):
    return checkpoint.decoder, checkpoint.encoder


def test_each_run_goes_on_with_the_adapters_of_the_one_before(preset, runs):
    before, after = (load_run(preset, runs, name) for name in ("reconstruct", "finetune"))
    for module, trained in zip(parts_of(before), parts_of(after), strict=True):
        assert has_adapter(module) and has_adapter(trained)
        own, its = module.backbone.state_dict(), trained.backbone.state_dict()
        changed = {name for name in own if not torch.equal(own[name], its[name])}
        assert changed and all(is_of_adapter(name) for name in changed)


def test_adapters_that_are_kept_apart_are_loaded_in_evaluation_mode_too(preset, runs):
    for part in parts_of(load_run(preset, runs)):
        assert not [name for name, module in part.named_modules() if module.training]


def test_the_checkpoint_holds_adapters_and_names_the_base_models(runs):
    folder = runs / "finetune" / CHECKPOINT
    assert not list(folder.glob("*/model.safetensors"))
    config = load_checkpoint(folder).config
    assert config.decoder_base.folder.endswith("decoder") and config.encoder_base.folder.endswith("encoder")


def test_a_loaded_checkpoint_is_merged_and_computes_what_was_trained(preset, runs):
    apart, merged = load_run(preset, runs), load_checkpoint(runs / "finetune" / CHECKPOINT)
    assert any(weight.abs().max() > 0 for name, weight in adapter_state(apart.decoder).items() if "lora_B" in name)
    chunks = merged.chunker.context_chunks(["the keeper of a harbour counts boats in winter and paints them"])
    inputs = [torch.from_numpy(each) for each in merged.chunker.encoder_inputs(chunks)]
    with torch.no_grad():
        embeddings = [each.projector(each.encoder(*inputs)) for each in (apart, merged)]
        states = [
            checkpoint.decoder.read(each.unsqueeze(0))
            for checkpoint, each in zip((apart, merged), embeddings, strict=True)
        ]
    # The merged decoder is rounded to half precision, as it is served.
    assert torch.allclose(*embeddings, atol=1e-5) and torch.allclose(*states, atol=1e-2)
    assert not any(has_adapter(module) for module in parts_of(merged))


def test_a_run_teaches_a_checkpoint_longer_chunks(preset, runs, tmp_path):
    start = runs / "reconstruct" / CHECKPOINT
    run = preset.runs["finetune"].model_dump() | {"start": str(start), "trained_chunk_sizes": [4, 16, 24]}
    longer = Preset.model_validate({**preset.model_dump(), "runs": {"finetune": run}})
    train_all(longer, tmp_path)
    before, after = load_checkpoint(start), load_run(longer, tmp_path)
    assert (after.config.trained_chunk_sizes, after.config.chunk_size) == ([4, 16, 24], 16)
    assert after.encoder.ordered.chunk_size == 24 and before.encoder.ordered.chunk_size == 16
    assert after.config.encoder_length == before.config.encoder_length + 2 * (24 - 16)
    assert after.with_chunk_size(24).config.chunk_size == 24


def test_chunks_longer_than_an_encoder_has_positions_for_are_not_taught(preset, runs, tmp_path):
    start = str(runs / "reconstruct" / CHECKPOINT)
    run = preset.runs["finetune"].model_dump() | {"start": start, "trained_chunk_sizes": [4096]}
    longer = Preset.model_validate({**preset.model_dump(), "runs": {"finetune": run}})
    with pytest.raises(TrainingError, match="cannot read encoder_length = 819"):
        train_all(longer, tmp_path)
    assert not (tmp_path / "finetune").exists()


def test_a_checkpoint_that_is_taught_other_sizes_alone_serves_the_longest(preset, runs):
    checkpoint = take_chunk_sizes(load_run(preset, runs, "reconstruct"), [8, 4, 8])
    assert (checkpoint.config.trained_chunk_sizes, checkpoint.config.chunk_size) == ([4, 8], 8)


def test_the_settings_that_are_kept_name_files_as_the_preset_does(preset, runs):
    kept = yaml.safe_load((runs / "finetune" / "settings.yaml").read_text())
    assert kept["questions"]["files"][0]["path"] == "town.jsonl"
    assert "data" not in summarise_runs(preset, runs)["finetune"]["settings"]


def test_a_run_does_not_go_on_with_other_data(preset, runs):
    with pytest.raises(TrainingError, match=r"begun with other settings: data was .* and is elsewhere"):
        train_all(preset.model_copy(update={"data": "elsewhere"}), runs)
