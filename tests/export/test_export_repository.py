"""The whole export is complete, self-contained, and harmless when it fails."""

import shutil
from pathlib import Path

import pytest
from export_helpers import read_config, read_files
from safetensors.torch import save_file

import refrag.export.repository
from refrag.config import RefragConfig
from refrag.context.deployed import DeployedFrame, DeployedTokenizers
from refrag.errors import CheckpointError
from refrag.export.graphs import export_projector
from refrag.export.parts import SharedParts, build_decoder, build_preprocessing, choose_chunk_size
from refrag.export.repository import TEMPLATES, export_repository, place
from refrag.model.checkpoint import load_decoder
from refrag.model.policy_file import load_policy
from refrag.model.projector import Projector
from refrag.model.tokenizers import load_decoder_tokenizer, load_decoder_vocab_size
from refrag.store.keys import EncoderIdentity
from refrag_client.cli.main import main

MODELS = sorted(path.parent.name for path in TEMPLATES.glob("*/config.pbtxt"))
PARTS = ("preprocessing", "expansion_policy", "decoder", "chunk_store")


def run_cli(checkpoint: Path, repository: Path, *more: str) -> int:
    return main(["export", "--checkpoint", str(checkpoint), "--repository", str(repository), *more])


def part(repository: Path, model: str) -> Path:
    return repository / model / "1" / "checkpoint"


@pytest.fixture
def damaged_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the export write projectors whose weights are not the checkpoint's."""

    def export_another(projector, path, precision):
        export_projector(Projector(projector.up.in_features, projector.down.out_features), path, precision)

    monkeypatch.setattr(refrag.export.repository, "export_projector", export_another)


@pytest.fixture
def changed_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_a_new_repository_has_what_its_config_needs(model, exported):
    version = exported / model / "1"
    needed = {"onnxruntime": "model.onnx", "python": "model.py"}
    backend = read_config(model, repository=exported).backend
    assert version.is_dir()
    assert backend not in needed or (version / needed[backend]).is_file()


def test_each_python_model_finds_its_part_of_the_checkpoint(exported, checkpoint):
    tokenizer = DeployedTokenizers.load(part(exported, "preprocessing")).decoder
    expected = load_decoder_tokenizer(checkpoint)
    assert tokenizer.encode(["a test"]) == [expected("a test", add_special_tokens=False).input_ids]
    for model in ("preprocessing", "chunk_store", "expansion_policy"):
        deployed = DeployedFrame.load(part(exported, model))
        assert deployed.vocab_size == load_decoder_vocab_size(checkpoint)
        assert deployed.frame.bos_ids == [expected.bos_token_id]
    decoder = load_decoder(part(exported, "decoder"))
    assert decoder.width == 16
    policy = part(exported, "expansion_policy")
    assert load_policy(policy, RefragConfig.load(policy)).question_in.in_features == 16


def test_every_part_carries_the_checkpoints_settings(exported, checkpoint):
    configs = [RefragConfig.load(part(exported, model)) for model in PARTS]
    assert configs == [RefragConfig.load(checkpoint)] * len(PARTS)


def test_preprocessing_gets_no_weights(exported):
    assert not list(part(exported, "preprocessing").rglob("*.safetensors"))


def test_an_encoders_own_tokenizer_travels_without_its_weights(changed_checkpoint, tmp_path):
    load_decoder_tokenizer(changed_checkpoint).save_pretrained(changed_checkpoint / "encoder")
    encoder = EncoderIdentity(b"fingerprint", width=16)
    shared = SharedParts.of(changed_checkpoint, RefragConfig.load(changed_checkpoint), encoder)
    build_preprocessing(shared, tmp_path / "built")
    own = DeployedTokenizers.load(tmp_path / "built").encoder
    assert own.encode(["a test"]) == shared.tokenizers.decoder.encode(["a test"])
    assert not list((tmp_path / "built").rglob("*.safetensors"))


def test_a_server_of_another_user_can_read_every_file(exported):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in exported.rglob("*") if path.is_file())


def test_an_export_leaves_nothing_behind_but_the_repository(exported):
    assert not [path for path in exported.rglob(".*") if path.name != ".gitkeep"]


def test_the_export_names_its_checkpoint_for_make(exported, checkpoint):
    makefile = (TEMPLATES.parents[1] / "Makefile").read_text()
    assert (part(exported, "decoder") / "exported_from").read_text() == f"{checkpoint.resolve()}\n"
    assert "$(REPOSITORY)/decoder/1/checkpoint/exported_from\n" in makefile


def test_a_config_that_the_user_changed_is_kept(repository):
    (repository / "projector" / "config.pbtxt").write_text("# mine")
    refrag.export.repository.add_missing_models(repository)
    assert (repository / "projector" / "config.pbtxt").read_text() == "# mine"


@pytest.mark.usefixtures("damaged_export")
def test_a_failed_parity_check_leaves_the_earlier_export_untouched(checkpoint, repository):
    before = read_files(repository)
    with pytest.raises(CheckpointError, match="projector"):
        export_repository(checkpoint, repository)
    assert read_files(repository) == before


@pytest.mark.usefixtures("damaged_export")
def test_a_damaged_graph_makes_the_command_fail(checkpoint, tmp_path, capsys):
    assert run_cli(checkpoint, tmp_path / "new") != 0
    assert capsys.readouterr().err.startswith("refrag: projector: largest error")


def test_a_second_export_replaces_the_first_and_reports_its_parity(checkpoint, repository, capsys):
    stale = part(repository, "decoder") / "stale.txt"
    stale.write_text("of an earlier checkpoint")
    graph = (repository / "projector" / "1" / "model.onnx").read_bytes()
    assert run_cli(checkpoint, repository, "--precision", "fp16", "--chunk-size", "8") == 0
    assert not stale.exists()
    assert (repository / "projector" / "1" / "model.onnx").read_bytes() != graph
    assert {RefragConfig.load(part(repository, model)).chunk_size for model in PARTS} == {8}
    assert "chunk_encoder: largest error" in capsys.readouterr().out


def test_another_chunk_size_shortens_the_rows_of_an_encoder_without_own_tokenizer(checkpoint):
    config = RefragConfig.load(checkpoint)
    assert choose_chunk_size(config, 8, encoder_has_tokenizer=False).encoder_length == 8
    assert choose_chunk_size(config, 8, encoder_has_tokenizer=True).encoder_length == config.encoder_length


def test_a_chunk_size_nobody_trained_is_refused_with_the_choices(checkpoint, tmp_path, capsys):
    assert run_cli(checkpoint, tmp_path / "new", "--chunk-size", "7") != 0
    assert "chunk size 7 is not one the checkpoint was trained with; choose from [8, 16]" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert run_cli(tmp_path / "nowhere", tmp_path / "new") != 0
    assert capsys.readouterr().err.startswith(f"refrag: {tmp_path / 'nowhere' / 'refrag.json'} is missing")


def test_a_decoder_without_weights_is_refused(changed_checkpoint, tmp_path):
    (changed_checkpoint / "decoder" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        build_decoder(changed_checkpoint, RefragConfig.load(changed_checkpoint), tmp_path / "built")


def test_parts_of_two_training_runs_are_refused(changed_checkpoint, tmp_path, capsys):
    save_file(Projector(16, 32).state_dict(), changed_checkpoint / "projector.safetensors")
    assert run_cli(changed_checkpoint, tmp_path / "new") != 0
    assert "is 16 wide and the projector needs 32" in capsys.readouterr().err


def test_parts_that_cannot_all_be_placed_leave_the_repository_as_it_was(tmp_path, monkeypatch):
    built, repository = tmp_path / "built", tmp_path / "repository"
    for root, text in ((built, "new"), (repository, "old")):
        for model in ("chunk_encoder", "decoder", "preprocessing"):
            (root / model / "1").mkdir(parents=True)
            (root / model / "1" / "part").write_text(text)
    (built / "projector" / "1").mkdir(parents=True)
    (built / "projector" / "1" / "part").write_text("new")
    rename = Path.rename

    def refuse_the_decoders(path, target):
        if path == built / "decoder" / "1" / "part":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_decoders)
    with pytest.raises(PermissionError):
        place(built, repository, tmp_path / "replaced")
    assert {path.read_text() for path in repository.glob("*/1/part")} == {"old"}
    assert not (repository / "projector" / "1" / "part").exists()
