import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from refrag.errors import TrainingError
from refrag.training.optimizer import Muon, learning_rate_factor, make_optimizer, orthogonalise, set_learning_rate
from refrag.training.settings import Optimisation

MUON = Optimisation(num_steps=1, learning_rate=1e-2, optimizer="muon", weight_decay=0.1)
ADAMW = Optimisation(num_steps=1, learning_rate=1e-2, weight_decay=0.1)


def a_model(tie=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


def step_with_random_gradients(model, *optimizers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


def torch_optimizers(model):
    """Return the equal of `make_optimizer` for MUON, built from torch's own two optimizers."""
    layers = list(model.model.layers.named_parameters())
    matrices = [parameter for _, parameter in layers if parameter.ndim == 2]
    others = [parameter for _, parameter in layers if parameter.ndim == 1]
    others += [model.model.embed_tokens.weight, model.model.norm.weight]
    return (
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
    )


def test_our_muon_is_torchs_with_adamw_for_the_rest():
    ours, theirs = a_model(), a_model()
    our_optimizer, their_optimizers = make_optimizer(ours, MUON), torch_optimizers(theirs)
    for seed in range(4):
        step_with_random_gradients(ours, our_optimizer, seed=seed)
        step_with_random_gradients(theirs, *their_optimizers, seed=seed)
    for (name, our), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # The weights moved by 2e-2, and torch orthogonalises in bfloat16, which is good to about a hundredth.
        tolerance = 4e-4 if "proj" in name else 1e-6
        torch.testing.assert_close(our, their, atol=tolerance, rtol=0)


def test_matrices_of_a_shape_are_orthogonalised_as_if_alone():
    matrices = [torch.randn(shape) for shape in [(8, 12), (12, 8), (8, 8), (8, 12)]]
    for together, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        torch.testing.assert_close(together, orthogonalise([matrix])[0])
        assert together.shape == matrix.shape


def test_orthogonalised_matrices_have_singular_values_near_one():
    for matrix in orthogonalise([torch.randn(8, 24), torch.randn(24, 8)]):
        singular_values = torch.linalg.svdvals(matrix)
        assert singular_values.min() > 0.4
        assert singular_values.max() < 1.3


@pytest.mark.parametrize("settings", [MUON, ADAMW])
def test_an_optimizer_goes_on_from_its_saved_state(settings):
    model = a_model()
    optimizer = make_optimizer(model, settings)
    step_with_random_gradients(model, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = make_optimizer(twin, settings)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_with_random_gradients(model, optimizer, seed=1)
    step_with_random_gradients(twin, twin_optimizer, seed=1)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("tie", [True, False])
def test_only_matrices_inside_the_networks_go_to_muon_and_decay(tie):
    model = a_model(tie)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for settings in (MUON, ADAMW):
        matrices, others = make_optimizer(model, settings).param_groups
        assert all("proj" in names[id(parameter)] for parameter in matrices["params"])
        assert not any("proj" in names[id(parameter)] for parameter in others["params"])
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert len(matrices["params"]) + len(others["params"]) == len(names)


def test_a_part_can_have_a_learning_rate_of_its_own():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    settings = ADAMW.model_copy(update={"learning_rate": 1.0, "part_learning_rates": {"encoder": 0.5}})
    optimizer = make_optimizer(model, settings)
    set_learning_rate(optimizer, settings, 0.1)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert {rates[id(each)] for each in model["encoder"].parameters()} == {0.05}
    assert {rates[id(each)] for each in model["decoder"].parameters()} == {0.1}


def test_a_learning_rate_for_a_part_that_the_stage_lacks_is_refused():
    settings = ADAMW.model_copy(update={"part_learning_rates": {"policy": 0.5}})
    with pytest.raises(TrainingError, match=r"names \['policy'\]; the stage has the parts \['encoder'\]"):
        make_optimizer(nn.ModuleDict({"encoder": nn.Linear(4, 4)}), settings)


def test_muon_takes_no_learning_rates_of_parts():
    with pytest.raises(ValueError, match="needs optimizer: adamw"):
        Optimisation(num_steps=1, learning_rate=1.0, optimizer="muon", part_learning_rates={"encoder": 0.5})


def test_frozen_parameters_are_left_to_themselves():
    model = nn.ModuleDict({"trained": nn.Linear(4, 4), "frozen": nn.Linear(4, 4).requires_grad_(False)})
    parameters = [each for group in make_optimizer(model, MUON).param_groups for each in group["params"]]
    assert {id(each) for each in parameters} == {id(each) for each in model["trained"].parameters()}


def test_a_parameter_without_a_gradient_stays_as_it_is():
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))
    Muon([matrix], [vector], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(matrix, torch.ones(2, 3))
    assert torch.equal(vector, torch.ones(2))


def test_the_rate_warms_up_and_falls_to_its_floor():
    factors = [learning_rate_factor(progress / 100, warmup=0.04, floor=0.02) for progress in range(101)]
    assert max(factors) == factors[4] == 1
    assert factors[0] < 0.1
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[100] == pytest.approx(0.02)


def test_without_warm_up_the_rate_starts_at_its_peak():
    assert learning_rate_factor(0.0, warmup=0.0) == 1
