"""`refrag teach`: from passages alone to a checkpoint that is nearer to its plain self, in one command that resumes."""

import json
import shutil

import pytest
from question_files import write_lines

from refrag.commands.teach import FEWEST_PASSAGES, split_passages
from refrag.evaluation.questions.comparison import render_comparison
from refrag.model.checkpoint import load_checkpoint
from refrag_client.cli.main import main

NAMES = ["Ana Korvin", "Mara Tolen", "Odo Marsk", "Ilse Brandt", "Pia Holm", "Jon Vesk"]


def write_passages(folder, count=FEWEST_PASSAGES):
    texts = [f"In the year {1900 + n} the keeper {NAMES[n % 6]} mended boat {n} at the quay." for n in range(count)]
    return write_lines(folder / "pool.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])


def teach(folder, checkpoint, passages, *more):
    sizes = ["--num-rows", "6", "--num-held-out", "3", "--num-passages", "2", "--max-tokens", "4"]
    steps = ["--set", "runs.teach.optimisation.num_steps=1", "--set", "runs.teach.tokens_per_step=200"]
    options = ["--checkpoint", str(checkpoint), "--passages", str(passages)]
    return main(["teach", str(folder), *options, *sizes, *steps, *more])


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    tiny_checkpoint.save(folder)
    return folder


@pytest.fixture(scope="module")
def taught(checkpoint, tmp_path_factory, accelerator_of_module):
    folder = tmp_path_factory.mktemp("taught")
    assert teach(folder, checkpoint, write_passages(folder)) == 0
    return folder


def passages_of(folder):
    return {json.loads(line)["text"] for line in (folder / "passages.jsonl").read_text().splitlines()}


def test_a_checkpoint_comes_of_it_that_has_learned(taught, checkpoint):
    before, after = load_checkpoint(checkpoint), load_checkpoint(taught / "checkpoint")
    changed = {
        name
        for name, module in after.modules.items()
        if any(
            (weight.half() != before.modules[name].state_dict()[key].half()).any()
            for key, weight in module.state_dict().items()
        )
    }
    assert changed == {"projector", "decoder"}


def test_nothing_is_learned_from_what_it_is_judged_by(taught):
    assert not passages_of(taught / "targets") & passages_of(taught / "held-out")


def test_fidelity_is_compared_on_the_same_rows_with_the_same_teacher(taught):
    rows = json.loads((taught / "fidelity.json").read_text())["rows"]
    assert {row["measure"] for row in rows} == {"divergence", "agreement"}
    assert {"none", "k=16:p=0"} <= {row["condition"] for row in rows}
    for row in rows:
        assert row["num_rows"] == 3
        assert row["difference"]["value"] == pytest.approx(row["after"]["value"] - row["before"]["value"], abs=2e-4)


def test_controls_that_share_a_passage_are_counted(taught):
    """Two passages of four are read at once, so that those of another request mostly are the question's own."""
    report = json.loads((taught / "fidelity.json").read_text())
    shuffled = [row for row in report["rows"] if row["condition"].endswith("shuffled")]
    [count] = {row["num_sharing_controls"] for row in shuffled}
    assert 0 < count <= 3
    assert f"k=16:p=0:shuffled ({count} of 3 share a passage)" in render_comparison(report)
    assert all("num_sharing_controls" not in row for row in report["rows"] if row not in shuffled)


def test_a_second_call_only_prints(taught, checkpoint, capsys):
    times = {path: path.stat().st_mtime_ns for path in taught.rglob("*.safetensors")}
    assert teach(taught, checkpoint, taught / "pool.jsonl") == 0
    assert {path: path.stat().st_mtime_ns for path in taught.rglob("*.safetensors")} == times
    assert "divergence from plain" in capsys.readouterr().out


def test_other_settings_are_refused_with_both_values(taught, checkpoint, capsys):
    before = {path: path.stat().st_mtime_ns for path in taught.rglob("*") if path.is_file()}
    other = write_passages(taught / "other", FEWEST_PASSAGES + 1)
    assert teach(taught, checkpoint, other, "--num-rows", "7") == 2
    told = capsys.readouterr().err
    assert "num_rows was 6 and is 7" in told and "passages was" in told and "remove this one to begin anew" in told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_is_trained_anew_is_saved_and_judged_anew(taught, checkpoint, tmp_path, capsys):
    folder = tmp_path / "taught"
    shutil.copytree(taught, folder)
    longer = ["--set", "runs.teach.optimisation.num_steps=2"]
    assert teach(folder, checkpoint, taught / "pool.jsonl", *longer) == 1
    assert f"{folder / 'runs' / 'teach'} was begun with other settings" in capsys.readouterr().err
    shutil.rmtree(folder / "runs" / "teach")
    assert teach(folder, checkpoint, taught / "pool.jsonl", *longer) == 0
    assert load_checkpoint(folder / "checkpoint").config.provenance["runs"]["teach"]["num_steps"] == 2
    rows = {path: json.loads((path / "fidelity.json").read_text())["rows"] for path in (taught, folder)}
    assert rows[taught] != rows[folder]


def test_too_few_passages_are_refused_before_anything_is_written(checkpoint, tmp_path, capsys):
    passages = write_passages(tmp_path, FEWEST_PASSAGES - 1)
    assert teach(tmp_path / "new", checkpoint, passages) == 2
    assert f"holds {FEWEST_PASSAGES - 1} different passages" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "given", "told"),
    [("--num-held-out", "1", "num_held_out is 1; it must be at least 2"), ("--num-rows", "0", "num_rows is 0")],
)
def test_too_few_requests_are_refused_before_anything_is_written(checkpoint, tmp_path, capsys, option, given, told):
    assert teach(tmp_path / "new", checkpoint, write_passages(tmp_path), option, given) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_text_that_stands_twice_is_not_both_learned_from_and_held_out(tmp_path):
    file = write_passages(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_lines(file, rows + [{**row, "id": f"{row['id']} again"} for row in rows])
    learned, held_out = split_passages(file, seed=0)
    assert len({one.text for one in [*learned, *held_out]}) == len(learned) + len(held_out) == FEWEST_PASSAGES


def test_a_setting_that_the_preset_lacks_is_named(checkpoint, tmp_path, capsys):
    assert (
        teach(tmp_path / "new", checkpoint, write_passages(tmp_path), "--set", "runs.teach.optimisation.steps=3") == 1
    )
    assert "runs.teach.optimisation.steps" in capsys.readouterr().err


def test_options_that_were_refused_may_be_corrected(checkpoint, tmp_path, capsys):
    passages, output = write_passages(tmp_path), tmp_path / "new"
    assert teach(output, checkpoint, passages, "--set", "runs.teach.stage=sing") == 1
    assert "runs.teach" in capsys.readouterr().err
    assert teach(output, checkpoint, passages) == 0


def test_a_decoder_that_cannot_be_trained_so_is_refused_before_it_answers(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("refrag.training.fit.packing_fault", lambda decoder: "its prompts see each other")
    assert teach(tmp_path / "out", checkpoint, write_passages(tmp_path)) == 1
    assert "see each other; set it to null, as with --set runs.NAME.row_slots=null" in capsys.readouterr().err
    assert not (tmp_path / "out" / "targets").exists()
    assert teach(tmp_path / "out", checkpoint, write_passages(tmp_path), "--set", "runs.teach.row_slots=null") == 0
