"""Linear layers in 8 bits: close to the exact product, and the same for a row whoever is beside it."""

import pytest
import torch
from engine_helpers import GREEDY, SHAPE, answer_alone, make_request, mixed_requests, run
from families import REFUSED, WINDOW, make_family
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen2Config

from refrag.decoders.base import MixedPrompt
from refrag.decoders.torch_engine import TorchSettings
from refrag.engine import int8_linear
from refrag.engine.engine import Engine
from refrag.engine.int8_linear import Int8Linear, Int8Product, find_siblings, quantise_decoder
from refrag.engine.settings import EngineSettings
from refrag.engine.support import layer_shapes
from refrag.errors import CheckpointError, SetupError
from refrag.model.decoder import Decoder

pytestmark = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX-512 VNNI")

# Wide enough for its layers to be quantised; the layers of keys and values have too few weights alone.
WIDE = {**SHAPE, "hidden_size": 256, "intermediate_size": 384, "initializer_range": 0.1}
CONFIGS = {"llama": LlamaConfig(**WIDE, tie_word_embeddings=True), "with biases": Qwen2Config(**WIDE)}


@pytest.fixture(params=CONFIGS)
def quantised(request):
    torch.manual_seed(0)
    decoder = Decoder(AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval())
    quantise_decoder(decoder)
    return decoder


def product(*layers):
    with torch.inference_mode():
        return Int8Product(layers)


def make_engine(decoder, tokenizer):
    settings = EngineSettings(kv_cache_mib=16, block_size=8, max_step_slots=24, max_whole_slots=1)
    return Engine(decoder, tokenizer, 512, settings)


def widen(request):
    """Return the request with chunk embeddings of the wide decoders."""
    prompt = MixedPrompt(request.prompt.input_ids, request.prompt.chunk_embeddings.repeat(1, 6)[:, :256].contiguous())
    return make_request(prompt, request.sampling)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 8, 300])
def test_a_product_is_close_though_one_input_is_a_hundred_times_the_others(num_rows, bias):
    torch.manual_seed(num_rows)
    layer, rows = nn.Linear(256, 512, bias=bias), torch.randn(2, num_rows, 256)
    rows[..., 5] = 100.0
    with torch.inference_mode():
        expected, given = layer(rows), product(layer).part(0, rows)
    assert given.shape == expected.shape
    # A weight is off by half a step of its row's scale at most, an input by much less.
    step = layer.weight.abs().amax(1) / 127
    assert ((given - expected).abs() <= 0.51 * step * rows.abs().sum(-1, keepdim=True)).all()
    assert (given - expected).norm() < 0.01 * expected.norm()


def test_inputs_are_rounded_to_sixteen_bits():
    """Weights that are whole numbers of their scale are exact, which leaves the error of the inputs."""
    layer, rows = nn.Linear(256, 300, bias=False), torch.randn(7, 256)
    with torch.inference_mode():
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape)).fill_diagonal_(127)
        expected, given = layer(rows.double().float()), product(layer).part(0, rows)
        assert layer.weight.abs().amax(1)[:256].eq(127).all()
    errors = (given - expected)[:, :256].abs()
    step = rows.abs().amax(-1, keepdim=True) / 2**15
    assert (errors <= step * layer.weight.detach().abs().sum(1)[:256]).all()
    assert errors.max() > 0


def test_a_row_is_the_same_alone_and_among_others():
    layer, rows = nn.Linear(256, 512), torch.randn(40, 256)
    with torch.inference_mode():
        of_layer = product(layer)
        together = of_layer.part(0, rows)
        for number in range(len(rows)):
            assert torch.equal(of_layer.part(0, rows[number : number + 1])[0], together[number])


def test_siblings_give_what_each_gives_alone():
    layers, rows = [nn.Linear(256, 320), nn.Linear(256, 512, bias=False)], torch.randn(1, 9, 256)
    with torch.inference_mode():
        both = product(*layers)
        for place, layer in enumerate(layers):
            torch.testing.assert_close(both.part(place, rows), product(layer).part(0, rows))
        other = torch.randn(1, 9, 256)
        # The second asks first, and another input comes between.
        torch.testing.assert_close(both.part(1, other), product(layers[1]).part(0, other))
        torch.testing.assert_close(both.part(0, rows), product(layers[0]).part(0, rows))
        torch.testing.assert_close(both.part(1, other), product(layers[1]).part(0, other))


def test_a_row_of_zeros_gives_the_bias_and_one_of_nan_gives_nan():
    layer = nn.Linear(256, 512)
    with torch.inference_mode():
        given = product(layer).part(0, torch.stack([torch.zeros(256), torch.full((256,), float("nan"))]))
    torch.testing.assert_close(given[0], layer.bias.detach())
    assert given[1].isnan().all()


class Calls(nn.Module):
    """Layers that are called in ways that make siblings, and in ways that do not."""

    def __init__(self):
        super().__init__()
        for name in ("query", "key", "changed", "again", "unused"):
            self.register_module(name, nn.Linear(4, 4))

    def forward(self, rows):
        total = self.query(rows) + self.key(rows)
        rows.add_(1)
        total = total + self.changed(rows) + self.again(rows)
        return self.again(total)


def test_siblings_are_called_in_a_row_with_the_same_unchanged_input():
    model = Calls()
    groups = find_siblings(list(model.children()), lambda: model(torch.zeros(1, 4)))
    names = {layer: name for name, layer in model.named_children()}
    assert [[names[layer] for layer in group] for group in groups] == [
        ["again"],
        ["unused"],
        ["query", "key"],
        ["changed"],
    ]


def test_layers_of_a_decoder_are_quantised_but_for_small_ones(quantised):
    by_name = {name: layer for name, layer in quantised.backbone.named_modules() if isinstance(layer, nn.Linear)}
    small = {name for name, layer in by_name.items() if not isinstance(layer, Int8Linear)}
    assert small == {name for name in by_name if name.endswith(("k_proj", "v_proj"))}
    layer = quantised.backbone.model.layers[0]
    assert layer.mlp.gate_proj.product is layer.mlp.up_proj.product is not layer.mlp.down_proj.product
    assert layer.mlp.gate_proj.weight.isnan().all()
    assert layer.mlp.gate_proj.weight.untyped_storage().nbytes() == 4
    assert not quantised.token_embeddings.weight.isnan().any()


def test_the_engine_is_generate_over_the_same_layers(quantised, tokenizer):
    requests = [widen(request) for request in mixed_requests(12) if request.sampling is GREEDY]
    expected = []
    for request in requests:
        prompt = request.prompt
        embeddings = quantised.embed_prompt(prompt.input_ids, prompt.chunk_embeddings).unsqueeze(0)
        config = GenerationConfig(max_new_tokens=GREEDY.max_tokens, do_sample=False, eos_token_id=2, pad_token_id=0)
        tokens = quantised.backbone.generate(inputs_embeds=embeddings, generation_config=config)[0]
        expected.append(tokens[tokens != 2].tolist())
    answers = run(make_engine(quantised, tokenizer), requests, per_step=2)
    assert [answer.token_ids for answer in answers] == expected


def test_batched_is_alone(quantised, tokenizer):
    requests = [widen(request) for request in mixed_requests(10)]
    together = run(make_engine(quantised, tokenizer), requests, per_step=2)
    assert together == [answer_alone(quantised, tokenizer, request) for request in requests]


@pytest.mark.parametrize("name", ["cpmant", "gemma4_text", "llama4_text", "xmod"])
def test_a_decoder_that_cannot_be_read_from_embeddings_is_still_refused_by_name(name):
    shape, reason = REFUSED[name]
    decoder = make_family(name, **shape).float()
    quantise_decoder(decoder)
    with pytest.raises(CheckpointError, match=reason):
        layer_shapes(decoder, WINDOW)


def test_a_processor_without_the_instructions_is_told(monkeypatch):
    monkeypatch.setattr(int8_linear.torch.cpu, "_is_vnni_supported", lambda: False)
    decoder = Decoder(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval())
    with pytest.raises(SetupError, match="AVX-512 VNNI; set it to none"):
        quantise_decoder(decoder)
    assert type(decoder.backbone.lm_head) is nn.Linear


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"quantization": "int4"}, "quantization is 'int4'; it must be one of none, int8"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "device 'cpu' and dtype 'bfloat16'; it is for cpu and float32"),
        ({"quantization": "int8", "device": "cuda"}, "device 'cuda' and dtype 'float32'; it is for cpu and float32"),
    ],
)
def test_settings_that_are_not_allowed_are_named(values, told):
    with pytest.raises(SetupError, match=told):
        TorchSettings(**values)
