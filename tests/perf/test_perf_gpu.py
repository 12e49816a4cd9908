"""`make gpu` runs through on the CPU at tiny shapes, on a machine that has torch and transformers and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perf.gpu import ON_GPU, TINY, compare_with_hugging_face, parts_of, run_parts
from perf.gpu_report import find_row, prefill_table

ROOT = Path(__file__).parents[2]
# What the project installs beside torch and transformers, by the names of its modules.
ABSENT = (
    "pydantic peft gguf tabulate markdown matplotlib onnx onnxruntime onnxscript lmdb redis accelerate tritonclient"
)
# Every other finder is asked for a hidden package in vain, so it looks as if it were not installed: importing it fails,
# and importlib.util.find_spec, by which transformers asks what there is, returns None.
HIDE = f"""
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        is_hidden = name.partition(".")[0] in {ABSENT.split()!r}
        return None if is_hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
RUN = f"{HIDE}from perf.gpu import main\nmain()"


def test_a_dry_run_at_tiny_shapes_shows_every_part_without_further_packages(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-c", RUN, "--tiny", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == [name for name, _ in parts_of(TINY)]
    assert parts["equality in float32"]["share_of_equal_tokens"] == 1
    assert parts["decoding"]["without_graphs"]["tokens_per_second"] > 0
    [prefill] = [part for name, part in parts.items() if name.startswith("prefill")]
    assert {row["batch"] for row in prefill["rows"]} == {1, 2}
    assert parts["training"]["tokens_per_second"] > 0


def test_a_hidden_package_is_neither_found_nor_imported():
    look = "from importlib.util import find_spec\nprint(find_spec('accelerate'), find_spec('torch') is None)"
    done = subprocess.run(
        [sys.executable, "-c", f"{HIDE}{look}\nimport accelerate"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["None", "False"]
    assert "ModuleNotFoundError: No module named 'accelerate'" in done.stderr


def test_a_part_that_fails_leaves_its_error_and_the_next_one_runs(monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("perf.gpu.parts_of", lambda plan: [("first", fail), ("second", lambda: {"figure": 1})])
    report = run_parts(TINY, 8, tmp_path / "gpu.json")
    assert "no such kernel" in report["parts"]["first"]["error"]
    assert report["parts"]["second"]["figure"] == 1
    assert json.loads((tmp_path / "gpu.json").read_text()) == report


def test_what_the_time_does_not_suffice_for_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("perf.gpu.parts_of", lambda plan: [("late", dict)])
    report = run_parts(TINY, -1, tmp_path / "gpu.json")
    assert "minutes were spent" in report["parts"]["late"]["left_out"]


def test_without_a_gpu_the_command_says_how_to_try_it(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-m", "perf.gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "add --tiny" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1.0), ("bfloat16", 0.9)])
def test_on_a_gpu_the_engine_gives_hugging_faces_tokens(dtype, least):
    assert compare_with_hugging_face(ON_GPU, dtype)["share_of_equal_tokens"] >= least


def test_the_table_has_every_row_and_each_is_found_by_what_it_is_of():
    def row(context_tokens, chunk_size, speedup):
        row = {"context_tokens": context_tokens, "chunk_size": chunk_size, "batch": 1, "prompt_slots": 9}
        row |= {"expand_fraction": None if chunk_size is None else 0.0, "ttft": {"p50_ms": 12.6}, "share_of_peak": 0.5}
        return row if chunk_size is None else {**row, "speedup": speedup, "speedup_not_cached": 1.5, "analytic": 8.0}

    rows = [row(512, None, None), row(512, 16, 2.0), row(2048, 16, 6.0), row(2048, 32, 9.0)]
    report = {"parts": {"prefill": {"shape": "30m", "rows": rows}, "training": {"tokens_per_second": 1.0}}}
    assert find_row(report, "30m", 2048, 16, 0.0)["speedup"] == 6.0
    assert find_row(report, "30m", 512, 16, 0.0)["speedup"] == 2.0
    with pytest.raises(KeyError, match="no row of 30m, 512 tokens, k=32"):
        find_row(report, "30m", 512, 32, 0.0)
    lines = prefill_table(report).splitlines()
    assert len(lines) == 2 + len(rows)
    assert [cell.strip() for cell in lines[2].strip("|").split("|")][3:6] == ["plain", "9", "13 ms"]
    assert "k=32, p=0" in lines[-1]
    assert "9.0×" in lines[-1]
