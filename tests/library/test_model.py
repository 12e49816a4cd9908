import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from refrag.config import RefragConfig
from refrag.decoders.base import Limits, MixedPrompt, check_prompt
from refrag.engine.generation import generate
from refrag.errors import CheckpointError, InvalidRequest
from refrag.model.checkpoint import load_checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder, OrderedPooling
from refrag.model.projector import RIDGE, Projector
from refrag.request import SamplingParams


def limits_of(checkpoint):
    return Limits(checkpoint.decoder.vocab_size, checkpoint.decoder.width, window=100)


def ordered_encoder(checkpoint):
    backbone = checkpoint.encoder.backbone
    width = backbone.config.hidden_size
    return ChunkEncoder(backbone, "ordered", OrderedPooling(checkpoint.config.chunk_size, width, width)).eval()


@pytest.fixture(scope="module")
def saved(tiny_checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint.save(directory)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_a_saved_checkpoint_loads_to_the_same_weights(tiny_checkpoint, saved):
    loaded = load_checkpoint(saved)
    assert loaded.config == tiny_checkpoint.config
    for name, module in tiny_checkpoint.modules.items():
        for key, weight in module.state_dict().items():
            assert torch.equal(loaded.modules[name].state_dict()[key], weight), (name, key)


def test_a_checkpoint_without_a_policy_network_loads_if_its_default_policy_needs_none(copy):
    (copy / "policy.safetensors").unlink()
    replace(RefragConfig.load(copy), policy="random").save(copy)
    checkpoint = load_checkpoint(copy)
    assert checkpoint.policy is None and "policy" not in checkpoint.modules
    with pytest.raises(CheckpointError, match=r"has no policy.safetensors; train a policy"):
        checkpoint.require_policy()
    checkpoint.save(copy / "again")
    assert not (copy / "again" / "policy.safetensors").exists()


def test_a_save_replaces_the_parts_of_an_earlier_one_and_keeps_other_files(tiny_checkpoint, copy):
    (copy / "decoder" / "adapter_config.json").write_text("{}")
    (copy / "training.json").write_text("{}")
    (copy / "questions").mkdir()
    config = replace(tiny_checkpoint.config, policy="random")
    replace(tiny_checkpoint, policy=None, config=config).save(copy)
    parts = {"refrag.json", "decoder", "encoder", "projector.safetensors"}
    assert {path.name for path in copy.iterdir()} == {*parts, "training.json", "questions"}
    assert not (copy / "decoder" / "adapter_config.json").exists()
    assert load_checkpoint(copy).policy is None


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_save_that_breaks_off_leaves_the_earlier_checkpoint_whole(tiny_checkpoint, copy, monkeypatch):
    before = contents(copy)
    monkeypatch.setattr("refrag.model.checkpoint.save_policy", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace(tiny_checkpoint, config=replace(tiny_checkpoint.config, policy="random")).save(copy)
    assert contents(copy) == before


@pytest.mark.parametrize("is_moved", [False, True], ids=["refused", "interrupted"])
@pytest.mark.parametrize("number", range(10))
def test_a_save_that_breaks_off_while_it_replaces_moves_everything_back(
    tiny_checkpoint, copy, monkeypatch, number, is_moved
):
    before, rename, renamed = contents(copy), Path.rename, []

    def break_off(path, target):
        renamed.append(path)
        if len(renamed) != number + 1:
            return rename(path, target)
        if is_moved:
            rename(path, target)
            raise KeyboardInterrupt
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", break_off)
    with pytest.raises((PermissionError, KeyboardInterrupt)):
        replace(tiny_checkpoint, config=replace(tiny_checkpoint.config, policy="random")).save(copy)
    assert contents(copy) == before and not (copy / ".old").exists()


def test_a_folder_in_which_parts_are_being_replaced_is_no_checkpoint(tiny_checkpoint, copy, monkeypatch):
    rename, seen = Path.rename, []

    def look_before(path, target):
        seen.append((copy / "refrag.json").exists())
        rename(path, target)

    monkeypatch.setattr(Path, "rename", look_before)
    tiny_checkpoint.save(copy)
    # Five parts go and five come.
    assert seen == [True, *[False] * 9]


def test_what_a_killed_save_left_is_gone_after_the_next(tiny_checkpoint, copy):
    (copy / ".old").mkdir()
    (copy / "refrag.json").rename(copy / ".old" / "refrag.json")
    tiny_checkpoint.save(copy)
    assert not (copy / ".old").exists() and load_checkpoint(copy).config == tiny_checkpoint.config


def test_a_decoder_alone_that_is_saved_over_an_adapter_is_without_it(tiny_checkpoint, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    tiny_checkpoint.save(tmp_path, part="decoder")
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors"}
    assert not (tmp_path / "adapter_config.json").exists()


@pytest.mark.parametrize("part", ["refrag.json", "projector.safetensors", "policy.safetensors", "encoder", "decoder"])
def test_a_missing_part_is_named(copy, part):
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=f"{part} is missing"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "part", ["refrag.json", "projector.safetensors", "policy.safetensors", "decoder/model.safetensors"]
)
def test_a_corrupt_part_is_named(copy, part):
    (copy / part).write_bytes(b"\x00garbage")
    with pytest.raises(CheckpointError, match=part.split("/")[0]):
        load_checkpoint(copy)


def test_weights_that_do_not_fit_are_named(copy):
    shutil.copy(copy / "projector.safetensors", copy / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors.*question_in"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "change, named",
    [({"chunk_size": 0}, "chunk_size is 0"), ({"pooling": "max"}, "pooling is 'max'"), ({"k": 4}, "unknown settings")],
)
def test_a_config_that_makes_no_sense_is_refused(copy, change, named):
    path = copy / "refrag.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=named):
        RefragConfig.load(copy)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_no_chunk_vector(tiny_checkpoint, pooling):
    encoder = ChunkEncoder(tiny_checkpoint.encoder.backbone, pooling)
    short = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    alone = encoder(short, torch.ones_like(short))
    assert torch.allclose(encoder(padded, torch.tensor([[1, 1, 1, 0, 0]])), alone, atol=1e-5)


def test_a_row_without_tokens_encodes_to_finite_numbers(tiny_checkpoint):
    nothing = torch.zeros(1, 16, dtype=torch.long)
    assert torch.isfinite(tiny_checkpoint.encoder(nothing, nothing)).all()


def test_the_projector_starts_at_the_scale_of_the_tokens():
    projector, tokens = Projector(8, 12), torch.randn(100, 12) * 0.02
    vectors = torch.randn(50, 8) * 7
    projector.match_scale(vectors, tokens)
    assert projector(vectors).pow(2).mean().sqrt().item() == pytest.approx(tokens.pow(2).mean().sqrt().item(), rel=1e-4)


def test_a_fitted_projector_is_the_linear_map_that_ridge_regression_finds():
    torch.manual_seed(0)
    vectors, wanted = torch.randn(500, 5) + 3, torch.randn(500, 12)
    projector = Projector(5, 12)
    projector.fit(vectors, wanted)
    # Ordinary least squares, with a row for each penalised dimension.
    apart, away = vectors - vectors.mean(0), wanted - wanted.mean(0)
    penalty = RIDGE * apart.pow(2).sum(0).mean()
    rows = torch.cat([apart, penalty.sqrt() * torch.eye(5)])
    linear = torch.linalg.lstsq(rows, torch.cat([away, torch.zeros(5, 12)])).solution
    torch.testing.assert_close(projector(vectors), wanted.mean(0) + apart @ linear, atol=1e-4, rtol=1e-4)


def test_placeholders_take_the_rows_they_name(tiny_checkpoint):
    decoder = tiny_checkpoint.decoder
    rows = torch.randn(2, decoder.width)
    embedded = decoder.embed_prompt(torch.tensor([7, decoder.vocab_size + 1, 8, decoder.vocab_size]), rows)
    expected = torch.stack([decoder.token_embeddings.weight[7], rows[1], decoder.token_embeddings.weight[8], rows[0]])
    assert torch.equal(embedded, expected)


def test_cached_decoding_equals_a_full_forward(tiny_checkpoint):
    decoder = tiny_checkpoint.decoder
    ids = torch.tensor([5, 9, 13, 17])
    _, cache = decoder.prefill(decoder.embed_prompt(ids[:3], torch.zeros(0, 0)))
    step = decoder.decode_one_token(17, cache)
    full = decoder.backbone(input_ids=ids[None]).logits[0, -1]
    assert torch.allclose(step, full, atol=1e-5)


@pytest.mark.parametrize("config_type", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_our_tokens_equal_those_of_hugging_face_generate(tiny_checkpoint, config_type):
    torch.manual_seed(0)
    config = config_type(
        vocab_size=512,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        eos_token_id=2,
        pad_token_id=0,
    )
    decoder = Decoder(AutoModelForCausalLM.from_config(config)).eval()
    prompt = MixedPrompt(torch.tensor([*range(10, 40), 513, 7, 512]), torch.randn(2, decoder.width))
    ours = generate(decoder, tiny_checkpoint.decoder_tokenizer, prompt, SamplingParams(max_tokens=20))
    embeds = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings)[None]
    theirs = decoder.backbone.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), max_new_tokens=20, do_sample=False
    )
    expected = [i for i in theirs[0].tolist() if i not in decoder.eos_ids]
    assert [i for delta in ours for i in delta.token_ids] == expected


@pytest.mark.parametrize("eos, ids", [(2, {2}), ([2, 3], {2, 3}), (None, set())])
def test_a_decoder_may_have_one_several_or_no_end_tokens(eos, ids):
    config = LlamaConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    backbone = LlamaForCausalLM(config)
    backbone.generation_config.eos_token_id = eos
    assert Decoder(backbone).eos_ids == ids


@pytest.mark.parametrize(
    "ids, rows, max_tokens, named",
    [
        ([], (0, 0), 4, "no slots"),
        ([5], (0, 0), 100, "needs 1 slots and max_tokens 100"),
        ([512], (0, 0), 4, "allowed is 0 to 511"),
        ([-1], (0, 0), 4, "range from -1"),
        ([514], (2, 48), 4, "allowed is 0 to 513"),
        ([512], (1, 47), 4, "width 47"),
        ([513], (2, 48), 4, "2 rows for a prompt of 1 slots"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(tiny_checkpoint, ids, rows, max_tokens, named):
    prompt = MixedPrompt(torch.tensor(ids, dtype=torch.long), torch.zeros(rows))
    with pytest.raises(InvalidRequest, match=named):
        check_prompt(prompt, SamplingParams(max_tokens=max_tokens), limits_of(tiny_checkpoint))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_enough_to_be_refused(tiny_checkpoint, value):
    rows = torch.randn(3, 48)
    rows[1, 20] = value
    prompt = MixedPrompt(torch.tensor([512, 513, 514]), rows)
    with pytest.raises(InvalidRequest, match="NaN"):
        check_prompt(prompt, SamplingParams(), limits_of(tiny_checkpoint))


def test_ordered_pooling_starts_as_the_mean_of_the_places(tiny_checkpoint):
    encoder = ordered_encoder(tiny_checkpoint)
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    states = encoder.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    # The first and the last belong to no decoder token; two belong to the second.
    [vector] = encoder(ids, torch.tensor([[1, 2, 3, 3, 1]]))
    assert torch.allclose(vector, (states[1] + (states[2] + states[3]) / 2) / 2, atol=1e-5)


def test_ordered_pooling_tells_orders_apart_that_a_mean_does_not(tiny_checkpoint):
    encoder = ordered_encoder(tiny_checkpoint)
    states, places = torch.randn(1, 2, encoder.width), torch.tensor([[2, 3]])
    pool = encoder.ordered
    assert torch.allclose(pool(states, places), pool(states.flip(1), places), atol=1e-5)
    torch.nn.init.normal_(pool.weight)
    assert not torch.allclose(pool(states, places), pool(states.flip(1), places), atol=1e-2)


def test_a_chunk_longer_than_ordered_pooling_has_places_for_is_refused(tiny_checkpoint, tmp_path):
    config = replace(tiny_checkpoint.config, pooling="ordered")
    checkpoint = replace(tiny_checkpoint, encoder=ordered_encoder(tiny_checkpoint), config=config)
    with pytest.raises(CheckpointError, match="chunk_size is 32, but the ordered pooling has 16 places"):
        checkpoint.with_chunk_size(32)
    replace(checkpoint, config=replace(config, chunk_size=32, encoder_length=32)).save(tmp_path)
    with pytest.raises(CheckpointError, match="has 16 places"):
        load_checkpoint(tmp_path)


def test_widened_ordered_pooling_reads_short_chunks_as_before_and_later_places_as_its_last(tiny_checkpoint):
    pool = ordered_encoder(tiny_checkpoint).ordered
    torch.nn.init.normal_(pool.weight)
    wide, last = pool.widened(20), pool.chunk_size
    states, width = torch.randn(1, 3, pool.weight.shape[1]), pool.width
    short, long = torch.tensor([[2, 3, 17]]), torch.tensor([[2, 3, 21]])
    assert (wide.chunk_size, wide.width, pool.chunk_size) == (20, width, last)
    assert torch.allclose(wide(states, short), pool(states, short), atol=1e-5)
    # Place 17 is the last of the sixteen, 21 the last of the twenty.
    assert torch.allclose(wide(states, long), pool(states, short), atol=1e-5)
    assert torch.equal(pool.widened(4).weight, pool.weight)


def test_ordered_pooling_is_saved_with_the_encoder(tiny_checkpoint, tmp_path):
    encoder = ordered_encoder(tiny_checkpoint)
    torch.nn.init.normal_(encoder.ordered.weight)
    config = replace(tiny_checkpoint.config, pooling="ordered")
    replace(tiny_checkpoint, encoder=encoder, config=config).save(tmp_path)
    chunks = tiny_checkpoint.chunker.context_chunks(["the keeper of a harbour counts boats in winter"])
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.encoder.ordered.weight, encoder.ordered.weight)
    inputs = [torch.from_numpy(each) for each in loaded.chunker.encoder_inputs(chunks)]
    assert torch.allclose(loaded.encoder(*inputs), encoder.eval()(*inputs), atol=1e-5)
