"""The file of a checkpoint's attention heads: of these weights and no others, and saved with them."""

import json

import pytest
import torch
from tiny import make_tiny_checkpoint

from refrag.errors import CheckpointError
from refrag.model.attention_heads import HEADS_FILE, AttentionHeads, Scoring, digest_weights, load_heads
from refrag.model.checkpoint import load_checkpoint, load_decoder
from refrag.model.decoder import Decoder
from refrag.model.whole import save_whole_copy
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request, SamplingParams

PASSAGES = ["Mara Tolen keeps a parrot in the old harbour house by the sea."] * 6


@pytest.fixture
def decoder():
    return make_tiny_checkpoint().decoder


@pytest.fixture
def saved(tmp_path, decoder):
    """Return a checkpoint with heads of its own weights."""
    checkpoint = make_tiny_checkpoint()
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder)
    heads_of(load_decoder(folder)).save(folder)
    return folder


def heads_of(decoder, **changes):
    values = {"heads": ((0, 1), (0, 3)), "weights": (1.0, 0.5), "digest": digest_weights(decoder)}
    return AttentionHeads(**{**values, **changes})


def damage(folder, **changes):
    path = folder / HEADS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_heads_come_back_as_they_were_saved(tmp_path, decoder):
    heads = heads_of(decoder, scoring=Scoring(8, 0.1, 0.2, 0.3), provenance={"rows": 400})
    heads.save(tmp_path)
    assert AttentionHeads.load(tmp_path) == heads
    assert AttentionHeads.load(tmp_path).by_layer == {0: [1, 3]}


def test_without_a_file_the_heads_of_the_middle_layers_are_read(tmp_path):
    decoder = make_tiny_checkpoint(num_layers=10).decoder
    heads = load_heads(tmp_path, decoder)
    assert sorted(heads.by_layer) == [3, 4, 5, 6]
    assert all(numbers == [0, 1, 2, 3] for numbers in heads.by_layer.values())


def test_a_decoder_of_one_layer_is_read_there(tmp_path):
    assert list(load_heads(tmp_path, make_tiny_checkpoint(num_layers=1).decoder).by_layer) == [0]


def test_heads_of_other_weights_are_refused(saved, decoder):
    with torch.no_grad():
        decoder.backbone.get_output_embeddings().weight[5] += 1.0
    with pytest.raises(CheckpointError, match=r"heads of other weights than the decoder's; run `refrag heads find`"):
        load_heads(saved, decoder)
    checkpoint = load_checkpoint(saved)
    with torch.no_grad():
        checkpoint.decoder.backbone.get_output_embeddings().weight[5] += 1.0
    options = ExpansionOptions(0.5, "attention")
    with pytest.raises(CheckpointError, match="heads of other weights"):
        Pipeline(checkpoint).answer(Request("Who?", PASSAGES, options), SamplingParams(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_weights_in_another_type_have_the_same_hash(tmp_path, dtype):
    """An export stores weights in half precision."""
    make_tiny_checkpoint().save(tmp_path, torch.float16)
    expected = digest_weights(load_decoder(tmp_path))
    assert digest_weights(load_decoder(tmp_path, dtype)) == expected


def test_saving_a_checkpoint_keeps_its_heads_unless_training_has_changed_the_decoder(saved, tmp_path):
    checkpoint = load_checkpoint(saved)
    checkpoint.save(tmp_path / "same")
    assert AttentionHeads.load(tmp_path / "same") == AttentionHeads.load(saved)
    with torch.no_grad():
        checkpoint.decoder.backbone.get_output_embeddings().weight[5] += 1.0
    checkpoint.save(tmp_path / "trained")
    assert AttentionHeads.load(tmp_path / "trained") is None


def test_a_save_over_an_earlier_checkpoint_keeps_its_heads_if_they_are_of_the_decoder(saved):
    before = (saved / HEADS_FILE).read_text()
    make_tiny_checkpoint().save(saved)
    assert (saved / HEADS_FILE).read_text() == before
    checkpoint = make_tiny_checkpoint()
    with torch.no_grad():
        checkpoint.decoder.backbone.get_output_embeddings().weight[5] += 1.0
    checkpoint.save(saved)
    assert not (saved / HEADS_FILE).exists()


def test_a_file_of_heads_that_cannot_be_read_goes_with_the_checkpoint_that_is_replaced(saved):
    (saved / HEADS_FILE).write_text("{")
    make_tiny_checkpoint().save(saved)
    assert load_checkpoint(saved).heads is None


def test_a_whole_copy_refuses_heads_of_other_weights(saved, tmp_path):
    damage(saved, weights_sha256="0" * 64)
    with pytest.raises(CheckpointError, match="heads of other weights"):
        save_whole_copy(saved, tmp_path / "whole")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"heads": [{"layer": 1}]}, "cannot be read"),
        ({"heads": 3}, "cannot be read"),
        ({"scoring": {}}, "cannot be read"),
        ({"scoring": {"query_slots": 0, "neighbours": 0, "passage": 0, "similarity": 0}}, "must be at least 1"),
        ({"scoring": {"query_slots": 1, "neighbours": 0, "passage": 0, "similarity": 2}}, "similarity 0 to 1"),
        ({"heads": []}, "names no head"),
        ({"heads": [{"layer": 9, "head": 0, "weight": 1}]}, "names head 0 of layer 9; the decoder has 2 layers"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(saved, changes, named):
    damage(saved, **changes)
    with pytest.raises(CheckpointError, match=f"{HEADS_FILE}.*{named}.*(find|again)"):
        load_heads(saved, load_decoder(saved))


def test_a_file_that_is_no_json_is_named(saved):
    (saved / HEADS_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=f"{HEADS_FILE} cannot be read"):
        load_checkpoint(saved)


def test_the_pipeline_reads_the_heads_of_its_checkpoint(saved):
    pipeline = Pipeline(load_checkpoint(saved))
    assert isinstance(pipeline.checkpoint.decoder, Decoder)
    assert pipeline.heads.heads == ((0, 1), (0, 3))
    answer = pipeline.answer(
        Request("Which animal?", PASSAGES, ExpansionOptions(0.5, "attention", sense_tokens=2)), SamplingParams(2)
    )
    assert len(answer.expanded) > 0
