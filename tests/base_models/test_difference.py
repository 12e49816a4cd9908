"""Checkpoints that name their backbones: adapters saved and loaded, merged, refused on another base, exported whole."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from base_model_helpers import save_folder
from peft import PeftModel
from safetensors.torch import load_file
from tiny import make_tiny_checkpoint, tiny_pair
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from refrag.base_models.reference import BaseModel
from refrag.config import RefragConfig
from refrag.context.deployed import DeployedTokenizers
from refrag.errors import CheckpointError
from refrag.export.repository import export_repository
from refrag.model.adapters import adapter_state, add_adapter, merge
from refrag.model.attention_heads import AttentionHeads, digest_weights
from refrag.model.backbones import has_adapter
from refrag.model.checkpoint import load_checkpoint, load_decoder
from refrag.model.tokenizers import load_decoder_tokenizer, load_decoder_vocab_size
from refrag.model.whole import save_whole_copy
from refrag.training.backbones import let_train, recompute_activations
from refrag.training.pair import make_pair
from refrag.training.pair_settings import Backbone

IDS = torch.arange(5, 45)[None]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return two tiny models as Hugging Face folders, each with a tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    checkpoint = make_tiny_checkpoint()
    checkpoint.save(folder, torch.float16)
    checkpoint.decoder_tokenizer.save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def pair(bases):
    """Return the pair that names both, as training starts with it."""
    names = {part: Backbone(pretrained=BaseModel(folder=str(bases / part))) for part in ("decoder", "encoder")}
    return make_pair(tiny_pair().model_copy(update=names))


def adapt(module, seed=0):
    """Put an adapter into the module that has learned something."""
    torch.manual_seed(seed)
    add_adapter(module, rank=4, alpha=8)
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


@pytest.fixture
def adapted(pair):
    adapt(pair.decoder)
    adapt(pair.encoder, seed=1)
    return pair


@pytest.fixture
def saved(adapted, tmp_path):
    adapted.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@torch.no_grad()
def outputs(checkpoint):
    return [
        checkpoint.decoder.backbone(input_ids=IDS).logits,
        checkpoint.encoder(IDS[:, :20], torch.ones_like(IDS[:, :20])),
        checkpoint.projector(torch.ones(1, checkpoint.encoder.width)),
    ]


def assert_equal(one, other, tolerance):
    for ours, theirs in zip(outputs(one), outputs(other), strict=True):
        assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def weights_of(folder):
    return {path.relative_to(folder): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_what_was_not_trained_is_not_held(pair, tmp_path):
    pair.save(tmp_path / "c")
    assert names_in(tmp_path / "c" / "decoder") == ["base.json", "generation_config.json"]
    assert names_in(tmp_path / "c" / "encoder") == ["base.json"]
    assert_equal(load_checkpoint(tmp_path / "c"), pair, 0)
    assert load_decoder_vocab_size(tmp_path / "c") == pair.decoder.vocab_size
    assert load_decoder_tokenizer(tmp_path / "c").get_vocab() == pair.decoder_tokenizer.get_vocab()


def test_an_adapter_starts_as_nothing_and_leaves_the_model_its_class(pair):
    before, layers = outputs(pair), len(pair.decoder.backbone.base_model.layers)
    add_adapter(pair.decoder, rank=4, alpha=8)
    add_adapter(pair.encoder, rank=4, alpha=8, dropout=0.1)
    for ours, theirs in zip(outputs(pair), before, strict=True):
        assert torch.equal(ours, theirs)
    assert type(pair.decoder.backbone) is LlamaForCausalLM
    assert len(pair.decoder.backbone.base_model.layers) == layers and pair.decoder.last_layer is not None
    head, embeddings = pair.decoder.backbone.get_output_embeddings(), pair.decoder.token_embeddings
    assert type(head) is torch.nn.Linear and head.weight is embeddings.weight and not head.weight.requires_grad


def test_only_the_adapter_learns_also_with_activations_recomputed(pair):
    adapt(pair.decoder)
    recompute_activations(pair.decoder)
    pair.decoder.train()
    embedded = pair.decoder.embed_prompt(IDS[0], torch.zeros(0, pair.decoder.width))[None]
    pair.decoder.logits(pair.decoder.read(embedded)).square().mean().backward()
    learned = {name for name, weight in pair.decoder.named_parameters() if weight.grad is not None}
    assert learned == {name for name, _ in pair.decoder.named_parameters() if "lora_" in name}
    let_train(pair.decoder, trains=False)
    assert not any(weight.requires_grad for weight in pair.decoder.parameters())


def test_a_saved_adapter_loads_to_the_same(adapted, saved):
    assert_equal(load_checkpoint(saved, merge_adapters=False), adapted, 0)
    assert names_in(saved / "decoder") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "generation_config.json",
    ]


def test_merged_equals_injected(adapted, saved):
    loaded = load_checkpoint(saved)
    assert not has_adapter(loaded.decoder) and not has_adapter(loaded.encoder)
    assert set(loaded.decoder.state_dict()) == set(load_decoder(saved).state_dict())
    injected = outputs(adapted)
    merge(adapted.decoder)
    merge(adapted.encoder)
    assert all(map(partial(torch.allclose, atol=TOLERANCE), injected, outputs(adapted)))
    for parameter in adapted.decoder.parameters():
        parameter.data = parameter.half().float()
    assert_equal(loaded, adapted, TOLERANCE)


# peft asks transformers under a name that this one is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_itself_reads_the_adapter(adapted, saved, bases):
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / "decoder"), str(saved / "decoder"))
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=IDS).logits, outputs(adapted)[0], atol=TOLERANCE)


def test_an_adapter_that_is_not_merged_is_saved_as_one_again(saved, tmp_path):
    load_checkpoint(saved, merge_adapters=False).save(tmp_path / "again")
    one, other = weights_of(saved), weights_of(tmp_path / "again")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[path][name], other[path][name]) for path in one for name in one[path])
    for path in saved.rglob("*.json"):
        assert (tmp_path / "again" / path.relative_to(saved)).read_text() == path.read_text()


def test_heads_stay_where_the_adapter_of_the_decoder_stays(saved):
    decoder = load_decoder(saved)
    replace(AttentionHeads.default(decoder), digest=digest_weights(decoder)).save(saved)
    # As a policy's training goes on from it, which leaves the decoder alone.
    replace(load_checkpoint(saved, merge_adapters=False), heads=None).save(saved)
    assert load_checkpoint(saved).heads.digest == digest_weights(load_decoder(saved))


def test_half_precision_files_are_float32_in_memory(adapted, tmp_path):
    adapted.save(tmp_path / "half", torch.float16)
    assert {weight.dtype for each in weights_of(tmp_path / "half").values() for weight in each.values()} == {
        torch.float16
    }
    loaded = load_checkpoint(tmp_path / "half")
    assert {weight.dtype for module in loaded.modules.values() for weight in module.parameters()} == {torch.float32}
    assert_equal(loaded, adapted, 1e-2)


def test_a_decoder_may_be_loaded_in_half_precision(saved):
    decoder = load_decoder(saved, torch.float16)
    expected = load_decoder(saved).half()
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in decoder.state_dict().items())


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_what_changed_beyond_an_adapter_is_saved_whole_and_names_no_base(part, adapted, tmp_path):
    with torch.no_grad():
        next(weight for name, weight in adapted.modules[part].named_parameters() if "norm" in name.lower()).add_(0.1)
    adapted.save(tmp_path / "c")
    config = RefragConfig.load(tmp_path / "c")
    assert getattr(config, f"{part}_base") is None
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names_in(tmp_path / "c" / part))
    assert has_adapter(adapted.decoder) and has_adapter(adapted.encoder)
    assert_equal(load_checkpoint(tmp_path / "c", merge_adapters=False), adapted, TOLERANCE)


def test_the_decoder_alone_is_a_plain_hugging_face_folder(adapted, tmp_path):
    adapted.save(tmp_path / "alone", part="decoder")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=IDS).logits, outputs(adapted)[0], atol=TOLERANCE)


def rename_base(checkpoint, part, folder):
    config = RefragConfig.load(checkpoint)
    replace(config, **{f"{part}_base": BaseModel(folder=str(folder))}).save(checkpoint)


@pytest.fixture
def other_base(bases, tmp_path):
    """Return a base of the same shape with other weights."""
    folder = shutil.copytree(bases / "decoder", tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.normal_(model.model.norm.weight)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_another_base_is_refused_and_both_are_named(saved, other_base, bases):
    rename_base(saved, "decoder", other_base)
    with pytest.raises(
        CheckpointError, match=r"the adapter in .*decoder was trained on .*SHA-256.*names.*SHA-256"
    ) as caught:
        load_decoder(saved)
    assert str(bases / "decoder") in str(caught.value) and str(other_base) in str(caught.value)


def test_a_projector_of_another_base_is_refused_and_both_are_named(saved, other_base, bases):
    rename_base(saved, "decoder", other_base)
    shutil.rmtree(saved / "decoder")
    with pytest.raises(CheckpointError, match=r"projector\.safetensors was trained on") as caught:
        load_checkpoint(saved)
    assert str(bases / "decoder") in str(caught.value) and str(other_base) in str(caught.value)


def test_the_same_weights_in_another_folder_are_the_same_base(adapted, saved, bases, tmp_path):
    rename_base(saved, "decoder", shutil.copytree(bases / "decoder", tmp_path / "moved"))
    assert_equal(load_checkpoint(saved, merge_adapters=False), adapted, TOLERANCE)


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_refused(saved):
    (saved / "encoder" / "base.json").unlink()
    with pytest.raises(CheckpointError, match=r"encoder has no base\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", ["{", "[]", '{"sha256": "0"}', '{"sha256": "0", "reference": {}}'])
def test_a_record_that_says_nothing_is_refused(saved, content):
    (saved / "decoder" / "base.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"base\.json"):
        load_checkpoint(saved)


def test_an_adapter_of_another_shape_is_refused(saved, tmp_path):
    save_folder(tmp_path / "narrow")
    rename_base(saved, "decoder", tmp_path / "narrow")
    record = saved / "decoder" / "base.json"
    from refrag.model.bases import record_base

    record.write_text(record_base(BaseModel(folder=str(tmp_path / "narrow"))).to_json())
    with pytest.raises(CheckpointError, match="holds an adapter that cannot be loaded"):
        load_decoder(saved)


def test_a_damaged_adapter_is_refused(saved):
    (saved / "decoder" / "adapter_model.safetensors").write_bytes(b"\x00garbage")
    with pytest.raises(CheckpointError, match="decoder holds an adapter that cannot be loaded"):
        load_decoder(saved)


def test_a_model_beside_the_name_of_a_base_is_refused(saved, bases):
    shutil.copy(bases / "decoder" / "config.json", saved / "decoder")
    with pytest.raises(CheckpointError, match=r"holds a model of its own, but refrag\.json names folder"):
        load_decoder(saved)


def test_an_export_is_whole_and_needs_no_base(saved, tmp_path):
    save_whole_copy(saved, tmp_path / "whole")
    expected = load_decoder(tmp_path / "whole").state_dict()
    export_repository(saved, tmp_path / "repository")
    served = tmp_path / "repository" / "decoder" / "1" / "checkpoint"
    assert "decoder_base" not in json.loads((served / "refrag.json").read_text())
    assert "adapter_config.json" not in names_in(served / "decoder")
    assert {each.dtype for each in load_file(served / "decoder" / "model.safetensors").values()} == {torch.float16}
    assert all(torch.equal(weight, expected[name]) for name, weight in load_decoder(served).state_dict().items())
    # In this process the decoder is the one that is served, bit for bit.
    merged = load_decoder(saved).state_dict()
    assert all(torch.equal(weight, merged[name]) for name, weight in expected.items())
    preprocessing = tmp_path / "repository" / "preprocessing" / "1" / "checkpoint"
    served_tokenizer = DeployedTokenizers.load(preprocessing).decoder
    assert served_tokenizer.backend.get_vocab() == load_decoder_tokenizer(saved).get_vocab()


@pytest.mark.parametrize("merge_adapter", [True, False])
def test_another_dtype_leaves_rotary_frequencies_exact(saved, merge_adapter):
    exact, rounded = (load_decoder(saved, dtype, merge_adapter) for dtype in (torch.float32, torch.bfloat16))
    frequencies = [each.backbone.base_model.rotary_emb.inv_freq for each in (exact, rounded)]
    assert {each.dtype for each in rounded.parameters()} == {torch.bfloat16}
    assert torch.equal(*frequencies) and frequencies[1].dtype == torch.float32


def test_adapter_state_has_the_names_of_peft(adapted):
    names = list(adapter_state(adapted.decoder))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 7 * len(adapted.decoder.backbone.base_model.layers)
