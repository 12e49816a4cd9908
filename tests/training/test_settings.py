"""Presets: those that we have load, and what does not fit is refused with its place."""

import pytest
import yaml

from refrag.errors import TrainingError
from refrag.training.preset_file import PRESETS, load_preset
from refrag.training.settings import Finetune

OPTIMISATION = {"num_steps": 4, "learning_rate": 0.001}
ADAPTER = {"rank": 2, "alpha": 4}
PRESET = {
    "description": "Two runs.",
    "pair": {"decoder": {"architecture": "llama"}, "encoder": {"pretrained": "somewhere"}},
    "runs": {
        "first": {"stage": "reconstruct", "optimisation": OPTIMISATION, "sources": [{"kind": "world"}]},
        "second": {"stage": "finetune", "start": "first", "optimisation": OPTIMISATION, "expand_fractions": [0.1]},
    },
    "result": "second",
}


@pytest.fixture
def preset(tmp_path):
    """Writes `values` as a preset; its path."""

    def write(values):
        path = tmp_path / "preset.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return str(path)

    return write


def changed(place, value):
    """Return PRESET with one value more or another one."""
    values = yaml.safe_load(yaml.safe_dump(PRESET))
    *path, last = place.split(".")
    inner = values
    for key in path:
        inner = inner[key]
    inner[last] = value
    return values


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_loads_and_ends_with_its_result(name):
    loaded = load_preset(name)
    assert loaded.result in loaded.runs
    assert loaded.description


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ("colour", "red", "colour: Extra inputs"),
        ("pair.chunksize", 16, r"pair\.chunksize: Extra inputs are not permitted; is chunk_size meant\?"),
        ("runs.second.max_passage", 3, r"runs\.second\.max_passage: Extra inputs .*; is max_passages meant\?"),
        ("runs.second.optimisation.steps", 3, r"runs\.second\.optimisation\.steps: Extra inputs"),
        ("runs.second.optimisation.num_steps", "many", r"runs\.second\.optimisation\.num_steps: .* valid integer"),
        ("runs.second.optimisation.num_steps", 1.5, r"runs\.second\.optimisation\.num_steps: .* valid integer"),
        ("runs.second.optimisation.num_steps", 0, r"runs\.second\.optimisation\.num_steps: .* greater than 0"),
        ("runs.second.optimisation.learning_rate", float("inf"), r"learning_rate: .* finite"),
        ("runs.second.optimisation.optimizer", "sgd", r"optimisation\.optimizer: .*'adamw' or 'muon'"),
        ("runs.second.expand_fractions", [0.1, 1.5], r"runs\.second\.expand_fractions\.1: .* less than or equal to 1"),
        ("runs.first.sources", [{"kind": "web"}], r"runs\.first\.sources\.0\.kind: "),
        ("runs.first.curriculum", {"num_chunks": [1, 2], "ratios": [1]}, r"runs\.first\.curriculum: .*as many ratios"),
        ("runs.second.stage", "distil", r"runs\.second: .*'distil'"),
        ("runs.second.start", "third", r"the whole: .*'second' starts from 'third'; runs above it are \['first'\]"),
        ("runs.first.start", "second", r"'first' starts from 'second'; runs above it are \[\]"),
        ("result", "third", r"result is 'third'; the runs are \['first', 'second'\]"),
        ("pair.decoder", {"shape": {}}, r"pair\.decoder: .*name a `pretrained` model"),
        ("pair.decoder.adapter", ADAPTER, r"pair\.decoder: .*pretrained is not given; .* mapping, such as \{folder"),
        ("pair.encoder.adapter", ADAPTER, r"pair\.encoder: .*pretrained is 'somewhere'; .* mapping, such as"),
        ("pair.pooling", "max", r"pair\.pooling: "),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(preset, place, value, fault):
    with pytest.raises(TrainingError, match=fault):
        load_preset(preset(changed(place, value)))


def test_a_base_model_that_the_checkpoint_names_may_have_an_adapter(preset):
    decoder = {"pretrained": {"folder": "somewhere"}, "adapter": ADAPTER}
    assert load_preset(preset(changed("pair.decoder", decoder))).pair.decoder.adapter.rank == 2


def test_an_unknown_preset_is_refused_with_those_known():
    with pytest.raises(
        TrainingError,
        match=r"no preset 'demos'; known are \['llama2-7b-roberta-large', 'smollm2', 'teach', 'tiny', 'world'\]",
    ):
        load_preset("demos")


@pytest.mark.parametrize(("text", "fault"), [("a: [1", "is not YAML"), ("- 1", "holds a list"), ("", "a NoneType")])
def test_a_file_that_is_no_preset_is_refused(preset, text, fault):
    with pytest.raises(TrainingError, match=fault):
        load_preset(preset(text))


def test_overrides_change_values_lists_and_entries_of_lists(preset):
    overrides = [
        "runs.second.optimisation.num_steps=7",
        "runs.second.optimisation.learning_rate=2e-3",
        "runs.second.expand_fractions=[0.2, 0.3]",
        "runs.first.sources.0.kind=stdlib",
        "runs.first.curriculum.num_stages=3",
        "pair.pooling=cls",
    ]
    loaded = load_preset(preset(PRESET), overrides)
    first, second = loaded.runs["first"], loaded.runs["second"]
    assert isinstance(second, Finetune)
    assert (second.optimisation.num_steps, second.optimisation.learning_rate) == (7, 0.002)
    assert second.expand_fractions == [0.2, 0.3]
    assert (first.sources[0].kind, first.curriculum.num_stages) == ("stdlib", 3)
    assert first.optimisation.num_steps == 4
    assert loaded.pair.pooling == "cls"


def test_without_a_pair_a_run_needs_a_checkpoint_to_start_from(preset, tmp_path):
    first = {**PRESET["runs"]["first"], "start": str(tmp_path)}
    values = {"description": "", "runs": {"first": first}, "result": "first"}
    with pytest.raises(TrainingError, match="name one of them, or the folder of a checkpoint"):
        load_preset(preset(values))
    (tmp_path / "refrag.json").write_text("{}")
    assert load_preset(preset(values)).pair is None
    with pytest.raises(TrainingError, match="the preset names no pair"):
        load_preset(preset(values)).require_pair()
    with pytest.raises(TrainingError, match="starts from nothing; give the preset a pair, or the run a start"):
        load_preset(preset(values), ["runs.first.start=null"])


def test_an_override_changes_one_run_where_an_alias_gives_two_the_same(preset):
    shared = yaml.safe_load(yaml.safe_dump(PRESET))
    shared["runs"]["second"]["optimisation"] = shared["runs"]["first"]["optimisation"]
    text = yaml.dump(shared)
    assert "*id001" in text
    runs = load_preset(preset(text), ["runs.second.optimisation.num_steps=9"]).runs
    assert [runs[name].optimisation.num_steps for name in ("first", "second")] == [4, 9]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("runs.second.max_passages", "the form is"),
        ("=3", "the form is"),
        ("result.name=third", "a single value where it looks for 'name'"),
        ("runs.first.sources.1.kind=text", "'1' must be the number of one of 1 entries, counted from 0"),
        ("runs.first.sources.kind=text", "'kind' must be the number of one of 1 entries, counted from 0"),
        ("runs.second.max_passages=[1", "is not YAML"),
        ("runs.second.max_passages=few", r"runs\.second\.max_passages: .* valid integer"),
        ("runs.third.max_passages=3", r"runs\.third: .*stage"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(preset, override, fault):
    with pytest.raises(TrainingError, match=fault):
        load_preset(preset(PRESET), [override])


def test_the_papers_values_are_in_its_preset():
    runs = load_preset("llama2-7b-roberta-large").runs
    rates = {name: runs[name].optimisation.learning_rate for name in ("reconstruct", "continue", "finetune")}
    assert rates == {"reconstruct": 2e-4, "continue": 5e-5, "finetune": 2e-5}
    for run in runs.values():
        assert (run.optimisation.optimizer, run.optimisation.warmup_fraction) == ("adamw", 0.04)
        assert (run.optimisation.mixed_precision, run.optimisation.gradient_checkpointing) == ("bf16", True)
    # On 8 GPUs with one example to a batch.
    assert 8 * runs["continue"].optimisation.accumulation_steps == 256
    assert runs["continue"].curriculum.num_chunks[-1] == 256
    assert (runs["continue"].continuation_tokens, runs["selective"].expand_fractions) == (2048, [0.1])
