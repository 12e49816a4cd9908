"""What a stage keeps in the memory of each GPU: weights, gradients and optimizer by count, activations by a dry run.

The parts are built on the meta device from their configurations, without any values. Sharded is as in
accelerate/fsdp.yaml: every process holds its share, in float32, of weights, gradients and optimizer state; the weights
of the layer in use and of the next one are gathered in the precision of the computation, and those outside the layers
stay gathered.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from refrag.training.backbones import layer_classes
from refrag.training.estimation.geometry import Geometry
from refrag.training.optimizer import make_optimizer
from refrag.training.settings import Optimisation

# All layers keep as much as one of the first two, which may differ from one another.
NUM_TRIED_LAYERS = 2
# The logits as they come, in float32 where they are not, their log-probabilities; then the same as gradients.
LOGIT_COPIES = {torch.float32: 4 + 4, torch.bfloat16: 2 + 4 + 4}


@dataclass(frozen=True)
class StaticMemory:
    """Bytes on each GPU whatever is in the batch."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.gathered


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward one: outside the layers, in one layer, as a layer's input."""

    outside: int
    layer: int
    layer_input: int
    num_layers: int

    def total(self, recompute: bool) -> int:
        """With `recompute` each layer keeps its input, and one at a time all else."""
        layers = self.num_layers * self.layer_input + self.layer if recompute else self.num_layers * self.layer
        return self.outside + layers


def compute_dtype(optimisation: Optimisation) -> torch.dtype:
    return torch.bfloat16 if optimisation.mixed_precision == "bf16" else torch.float32


def static_memory(objective: nn.Module, optimisation: Optimisation, num_shards: int) -> StaticMemory:
    """Of an objective on the meta device."""
    parameters = list(objective.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return StaticMemory(
        weights=_bytes(parameters, num_shards),
        gradients=_bytes(trained, num_shards),
        optimizer=_bytes(optimizer_state(objective, optimisation), num_shards),
        gathered=0 if num_shards == 1 else _gathered(objective, optimisation),
    )


def optimizer_state(objective: nn.Module, optimisation: Optimisation) -> list[Tensor]:
    """The tensors that the optimizer has after its first step."""
    optimizer = make_optimizer(objective, optimisation)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a Hugging Face model that recompute their activations, one after another."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def encoder_activations(config: PretrainedConfig, geometry: Geometry, dtype: torch.dtype) -> Kept:
    """Of an encoder that reads the chunks of the batch, and trains."""

    def read(model: Any) -> None:
        ids = torch.zeros(geometry.num_chunks, geometry.chunk_tokens, dtype=torch.long)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))

    return _dry_run(AutoModel, config, read, dtype, trains=True)


def decoder_activations(config: PretrainedConfig, geometry: Geometry, dtype: torch.dtype, trains: bool) -> Kept:
    """Of a decoder that reads the batch, and hands gradients on to chunk embeddings also where it is frozen."""

    def read(model: Any) -> None:
        shape = geometry.rows, geometry.slots, config.hidden_size
        embedded = torch.zeros(shape, dtype=dtype, requires_grad=True)
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(_sdpa_without_mask())
        model.base_model(inputs_embeds=embedded, use_cache=False)

    return _dry_run(AutoModelForCausalLM, config, read, dtype, trains)


def logits_bytes(geometry: Geometry, vocab_size: int, dtype: torch.dtype) -> int:
    """Of the predicted slots alone; nowhere else are there logits."""
    return geometry.num_predicted * vocab_size * LOGIT_COPIES[dtype]


class SavedBytes:
    """What autograd saves: the bytes of each storage once, and of the weights never."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._seen = {_storage(parameter) for parameter in model.parameters()}
        self._alive: list[Tensor] = []

    def add(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            # What is freed could leave its place in memory, by which it is known, to another.
            self._alive.append(tensor)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[SavedBytes]:
    """Counts what the forward passes inside of the block save."""
    saved = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


def _gathered(objective: nn.Module, optimisation: Optimisation) -> int:
    """Weights, and gradients before they are shared out."""
    names = set(layer_classes(objective))
    layers = [module for module in objective.modules() if type(module).__name__ in names]
    size = compute_dtype(optimisation).itemsize
    everything, trained = _count(objective), _count(objective, trained=True)
    in_layers, trained_in_layers = (sum(_count(each, trained=only) for each in layers) for only in (False, True))
    largest = max((_count(layer) for layer in layers), default=0)
    largest_trained = max((_count(layer, trained=True) for layer in layers), default=0)
    weights = everything - in_layers + 2 * largest
    gradients = trained - trained_in_layers + largest_trained
    return (weights + gradients) * size


def _count(module: nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def _bytes(tensors: list[Any], num_shards: int) -> int:
    """On the first process, whose share of the rows is the largest."""
    return sum(
        math.ceil(tensor.shape[0] / num_shards) * tensor[0].numel() * tensor.itemsize if tensor.dim() else tensor.nbytes
        for tensor in tensors
    )


def _dry_run(auto_class: Any, config: PretrainedConfig, read: Callable[[Any], None], dtype: Any, trains: bool) -> Kept:
    """Run the model on tensors without values, and add up what autograd saves."""
    num_layers = config.num_hidden_layers
    with FakeTensorMode():
        model = auto_class.from_config(_shortened(config, NUM_TRIED_LAYERS), dtype=dtype).requires_grad_(trains)
        layers = layers_of(model)
        with saved_bytes(model) as saved, _per_layer(layers, saved) as per_layer:
            read(model)
    in_layers = sum(size for size, _ in per_layer)
    return Kept(
        outside=saved.total - in_layers,
        layer=max((size for size, _ in per_layer), default=0),
        layer_input=max((size for _, size in per_layer), default=0),
        num_layers=num_layers,
    )


def _shortened(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = min(num_layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def _sdpa_without_mask() -> str:
    """The name of an attention that masks as `is_causal` does. Where every row is one example transformers needs no
    more either, but without values it cannot see that it has no packed ones.
    """
    name = "sdpa_without_mask"
    AttentionInterface.register(name, sdpa_attention_forward)
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    return name


@contextmanager
def _per_layer(layers: list[nn.Module], saved: SavedBytes) -> Iterator[list[tuple[int, int]]]:
    """For each layer the bytes saved in it, and those of its input."""
    sizes: list[tuple[int, int]] = []
    before: list[tuple[int, int]] = []

    def enter(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        before.append((saved.total, inputs[0].nbytes))

    def leave(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        total, size = before.pop()
        sizes.append((saved.total - total, size))

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
