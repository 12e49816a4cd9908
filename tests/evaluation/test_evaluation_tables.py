import json
import re
from dataclasses import replace

import pytest
from table_text import unaligned

from refrag.data.tasks import EXTRACTIVE_TASKS
from refrag.errors import CheckpointError, InvalidRequest
from refrag.evaluation import answers, tables
from refrag.evaluation.conditions import POLICIES
from refrag.evaluation.models import load_models
from refrag.evaluation.options import Options, parse_named_paths, prose_source
from refrag.evaluation.report import markdown_differences, markdown_table, markdown_tasks, render
from refrag.evaluation.tables import TABLES, choose_tables
from refrag.export.graphs import export_chunk_encoder
from refrag_client.cli.main import main

TINY = ["--num-questions", "8", "--num-windows", "3", "--trained-passages", "1"]
TINY += ["--context-tokens", "32", "--continuation-tokens", "20"]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint.save(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder, models, tmp_path_factory):
    """Return the report of the command that makes all tables, called with every option."""
    output = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    patch = pytest.MonkeyPatch()
    patch.setattr(tables, "STRONG_PASSAGES", (1, 3))
    patch.setattr(tables, "WEAK_RIVALS", ((2, 0.5), (4, 0.0)))
    patch.setattr(answers, "MAX_ANSWER_TOKENS", 3)
    patch.setattr(answers, "MAX_SUMMARY_TOKENS", 4)
    options = ["--plain", str(folder / "decoder")]
    for name, flag in (("blind", "--blind-policy"), ("learned unlabelled", "--unlabelled-policy")):
        replace(models.checkpoint, policy=models.policies[name]).save(output.parent / name, part="policy")
        options += [flag, str(output.parent / name / "policy.safetensors")]
    export_chunk_encoder(models.checkpoint.encoder, output.parent / "model.onnx", "fp32")
    options += ["--onnx-encoder", f"exported={output.parent}/model.onnx"]
    assert main(["evaluate", "run", "--checkpoint", str(folder), "--output", str(output), *options, *TINY]) == 0
    patch.undo()
    return json.loads(output.read_text())


def test_the_command_writes_every_table(report):
    assert list(report["tables"]) == list(TABLES)
    assert {"command", "machine", "commit", "seed"} < set(report)


def test_onnx_encoders_are_compared_only_where_some_are_given(models):
    with_one = replace(models, onnx_encoders={"int8": "model.onnx"})
    assert "onnx-encoders" not in choose_tables(None, models)
    assert choose_tables(None, with_one) == list(TABLES)
    assert choose_tables(["onnx-encoders"], with_one) == ["onnx-encoders"]
    for asked, given in ((["onnx-encoders"], models), (["answers"], with_one)):
        with pytest.raises(InvalidRequest, match="go together"):
            choose_tables(asked, given)


@pytest.mark.parametrize("name", TABLES)
def test_names_of_rows_are_unique_and_differences_name_two_of_them(report, name):
    names = [row["name"] for row in report["tables"][name]["rows"]]
    assert len(set(names)) == len(names)
    assert all({row["name"], row["against"]} <= set(names) for row in report["tables"][name]["differences"])


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_line_of_markdown(report, name):
    lines = markdown_table(report, name).splitlines()
    assert len(lines) == 2 + len(report["tables"][name]["rows"])
    assert len({line.count("|") for line in lines}) == 1


def test_exact_match_is_the_mean_of_its_tasks(report):
    for row in report["tables"]["answers"]["rows"]:
        tasks = [estimate["value"] for estimate in row["exact_match_by_task"].values()]
        assert row["exact_match"]["value"] == pytest.approx(sum(tasks) / len(tasks), abs=1e-3)
    assert len(markdown_tasks(report, "answers").splitlines()) == 2 + len(report["tables"]["answers"]["rows"])


def test_the_policies_are_compared_at_equal_slots_up_to_short_chunks(report):
    rows = [row for row in report["tables"]["policies"]["rows"] if row["name"].startswith("REFRAG k=16, 10%")]
    assert len(rows) == 6
    assert len({row["expanded_chunks"] for row in rows}) == 1


def test_the_policies_are_compared_at_every_chunk_size_and_every_fraction(report):
    conditions = [row["condition"] for row in report["tables"]["policies"]["rows"]]
    settings = {(condition["chunk_size"], condition["expand_fraction"]) for condition in conditions}
    assert settings == {(size, fraction) for size in (8, 16) for fraction in (0.05, 0.1, 0.2)}
    assert len(conditions) == len(settings) * len(POLICIES)


def test_more_passages_are_compared_over_the_tasks_that_they_answer_too(report):
    differences = report["tables"]["passages"]["differences"]
    extraction = [row for row in differences if row.get("tasks") == list(EXTRACTIVE_TASKS)]
    weak = [row for row in report["tables"]["passages"]["rows"] if row["retriever"] == "weak"]
    more = [row["name"] for row in weak if row["condition"]["form"] == "compressed"]
    assert more and [row["name"] for row in extraction] == more
    assert all(row["metric"] == "exact_match" for row in extraction)


def test_what_the_window_does_not_hold_has_no_row(models, monkeypatch):
    monkeypatch.setattr(tables, "STRONG_PASSAGES", (1, 8))
    monkeypatch.setattr(tables, "WEAK_PASSAGES", ())
    monkeypatch.setattr(models.plain.backbone.config, "max_position_embeddings", 400)
    rows = tables.tabulate_passages(models, Options(num_questions=7)).rows
    assert [(row["num_passages"], row["condition"]["form"]) for row in rows] == [
        (1, "full"),
        (1, "compressed"),
        (8, "compressed"),
    ]


def test_a_difference_that_excludes_zero_stands_out():
    row = {"name": "one", "against": "other", "metric": "exact_match", "tasks": ["fact", "exact"]}
    sure, unsure = ({"value": 0.1, "low": low, "high": 0.2} for low in (0.05, -0.05))
    report = {"tables": {"t": {"differences": [{**row, "difference": sure}, {**row, "difference": unsure}]}}}
    first, second = unaligned(markdown_differences(report, "t")).splitlines()[2:]
    assert first == "| one | other | exact match on fact, exact | **10.0 (5.0 to 20.0)** |"
    assert second == "| one | other | exact match on fact, exact | 10.0 (-5.0 to 20.0) |"


def test_the_ablations_put_runs_side_by_side(folder, tmp_path, capsys):
    output = tmp_path / "ablations.json"
    runs = [f"one={folder}", f"other={folder}"]
    options = ["--reconstruction", *runs, "--continuation", *runs, "--num-windows", "2", "--output", str(output)]
    assert main(["evaluate", "ablations", *options]) == 0
    report = json.loads(output.read_text())
    assert set(report["tables"]) == {
        f"{a}, {b}" for a in ("reconstruction", "continuation") for b in ("prose", "world")
    }
    for name, table in report["tables"].items():
        *sizes, runs = table["differences"]
        assert (runs["name"], runs["against"]) == ("other: REFRAG k=16", "one: REFRAG k=16")
        assert runs["difference"]["all"]["value"] == 0
        compared = [(difference["name"], difference["against"]) for difference in sizes]
        expected = [(f"{run}: REFRAG k=8", f"{run}: REFRAG k=16") for run in ("one", "other")]
        assert compared == (expected if name.startswith("continuation") else [])
    assert capsys.readouterr().out.strip() == render(report)
    assert main(["evaluate", "report", str(output)]) == 0
    assert capsys.readouterr().out.strip() == render(report)


@pytest.mark.parametrize("arguments", [["ablations"], ["report", "nowhere.json"]])
def test_an_evaluation_of_nothing_is_a_usage_error(arguments, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert re.match(r"refrag: (nothing to compare|nowhere\.json is no evaluation)", capsys.readouterr().err)


def test_without_a_plain_decoder_rows_say_whose_it_is(folder):
    assert load_models(folder).plain_name == "REFRAG's own decoder"


def test_a_plain_decoder_with_another_tokenizer_is_refused(folder, tmp_path, models):
    other = tmp_path / "other"
    models.checkpoint.decoder.backbone.save_pretrained(other)
    tokenizer = load_models(folder).checkpoint.decoder_tokenizer
    tokenizer.add_tokens(["unheard-of"])
    tokenizer.save_pretrained(other)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        load_models(folder, other)


def test_a_policy_that_sees_the_question_is_no_blind_one(folder):
    with pytest.raises(CheckpointError, match="question_aware True, where False is needed"):
        load_models(folder, policies={"blind": folder / "policy.safetensors"})


def test_options_and_runs_that_make_no_sense_are_refused():
    with pytest.raises(InvalidRequest, match="num_questions is 0"):
        Options(num_questions=0)
    with pytest.raises(InvalidRequest, match="must be at most"):
        Options(expand_fraction=0.6)
    for texts in (["folder"], ["=folder"], ["name="], ["name=folder", "name=other"]):
        with pytest.raises(InvalidRequest, match=r"the form is NAME=CHECKPOINT|a name of its own"):
            parse_named_paths(texts, "a run", "NAME=CHECKPOINT")


def test_prose_of_the_users_is_text_or_jsonl(tmp_path):
    assert prose_source(None).kind == "stdlib"
    assert prose_source(tmp_path).kind == "text"
    assert prose_source(tmp_path / "documents.jsonl.gz").kind == "jsonl"


def test_extrapolation_asks_the_same_questions_at_every_length(report):
    table = report["tables"]["extrapolation"]
    assert [row["num_passages"] for row in table["rows"]] == [1, 1, 4, 4, 16, 16]
    assert len(table["differences"]) == 8
    assert all("1 passage," in row["against"] for row in table["differences"])


def test_a_control_is_held_against_its_true_twin(report):
    differences = report["tables"]["answers"]["differences"]
    controls = [row for row in differences if row["name"].endswith(" embeddings")]
    assert len(controls) == 8
    assert all(row["name"].startswith(f"{row['against']}, ") for row in controls)
