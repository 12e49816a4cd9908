"""Linear layers with weights in 8-bit integers, for a CPU: a quarter of the memory to read for each token.

Weights have one scale for each output channel. Inputs are rounded as they come, to 16 bits with one scale for each row,
so that no row depends on others of its step, and sums of products are exact. Eight bits for inputs too, as in
SmoothQuant (Xiao et al., 2023), would be half the products, but then rounding errors are so large that an answer
changes with the order in which attention sums up.

oneDNN computes the products of bytes, through the operators that torch has for exported quantised models; the two bytes
of an input are two rows of one product. A call of them costs as much as reading a small layer's weights, so layers that
read the same input, such as those of queries, keys and values, are computed in one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from refrag.errors import SetupError
from refrag.model.decoder import Decoder

# M rows, D inputs, F outputs

# Fewest weights of a layer that is quantised. Smaller ones cost little time and memory, and stay as they are.
FEWEST_WEIGHTS = 2**16
# Tokens that are read to see which layers read the same input.
NUM_PROBED = 4
LARGEST_WEIGHT = 127
# What stands for 0 in an unsigned byte: oneDNN is fast for unsigned inputs alone.
ZERO = 128
# An input is 256 (a − ZERO) + b − ZERO, for two unsigned bytes a and b.
SHIFT = 256 * ZERO + ZERO
LARGEST_INPUT = 2**16 - 1 - SHIFT
# Least magnitude of a row's largest input; a row of zeros gives zeros.
TINY = 1e-30


class Int8Linear(nn.Linear):
    """A linear layer of 8-bit weights, which it may share with siblings that read the same input.  (…, D) -> (…, F)

    `weight` keeps its shape and type but takes no memory and is NaN throughout, so that code that still reads it shows.
    """

    product: "Int8Product"
    place: int

    def forward(self, input: Tensor) -> Tensor:
        return self.product.part(self.place, input)


class Int8Product:
    """The product of one input with the weights of several layers, computed when the first of them asks."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        scales = weight.abs().amax(1).clamp_min_(TINY) / LARGEST_WEIGHT  # (F,)
        rounded = (weight / scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scales, self._zeros = scales / LARGEST_INPUT, torch.zeros(len(scales), dtype=torch.int32)
        self._middle = torch.tensor(SHIFT + 0.5)
        self._bias = _joint_bias(layers)
        self._sizes = [layer.out_features for layer in layers]
        self._input: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def part(self, place: int, input: Tensor) -> Tensor:
        """Return the outputs of the layer at that place.  (…, D) -> (…, F)"""
        if input is not self._input:
            self._input, self._parts = input, self._compute(input).split(self._sizes, -1)
        part = self._parts[place]
        if place == len(self._sizes) - 1:
            self._input, self._parts = None, ()
        return part

    def _compute(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])  # (M, D)
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(TINY)  # (M, 1)
        # Cutting off rounds to the nearest, since all values are above zero by then.
        rounded = torch.addcdiv(self._middle, rows, largest, value=LARGEST_INPUT).to(torch.uint16)
        low_and_high = rounded.view(torch.uint8).view(*rows.shape, 2).movedim(-1, 0)  # (2, M, D)
        products = torch.ops.onednn.qlinear_pointwise(
            low_and_high.reshape(-1, rows.shape[1]),
            *(1.0, ZERO, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""),
        )  # (2 M, F)
        low, high = products.chunk(2)
        output = low.add_(high, alpha=256).mul_(largest)
        if self._bias is not None:
            output += self._bias
        return output.unflatten(0, input.shape[:-1])


@torch.inference_mode()
def quantise_decoder(decoder: Decoder) -> None:
    """Change every large plain linear layer of the decoder, in place, into an `Int8Linear`.

    It can no longer be trained or saved. Raises SetupError if the processor has no instructions for it.
    """
    if not torch.cpu._is_vnni_supported():
        raise SetupError("quantization is 'int8', which needs a CPU with AVX-512 VNNI; set it to none")
    linear = [layer for layer in decoder.backbone.modules() if type(layer) is nn.Linear]
    layers = [layer for layer in linear if _is_quantised(layer)]
    probed = decoder.token_embeddings.weight[:NUM_PROBED].unsqueeze(0)
    try:
        groups = find_siblings(layers, lambda: decoder.read(probed))
    except Exception:  # a decoder that is not read in this way, which the engine refuses by name
        groups = [[layer] for layer in layers]
    for siblings in groups:
        product = Int8Product(siblings)
        for place, layer in enumerate(siblings):
            nothing = layer.weight.new_full((), float("nan")).expand(layer.weight.shape)
            layer.__class__ = Int8Linear
            layer.__dict__.update(product=product, place=place)
            layer.weight = nn.Parameter(nothing, requires_grad=False)


def _is_quantised(layer: nn.Linear) -> bool:
    return layer.weight.dtype == torch.float32 and layer.weight.numel() >= FEWEST_WEIGHTS


def find_siblings(layers: Sequence[nn.Linear], read: Callable[[], object]) -> list[list[nn.Linear]]:
    """Return the layers in groups: those that were called in a row with the very same input, unchanged between.

    A layer that was called more than once, or not at all, is a group of its own.
    """
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        # A copy beside it, to see whether it has been changed in place by the next call.
        calls.append((layer, inputs[0], inputs[0].clone()))

    with _before_forward(layers, note):
        read()
    counts = Counter(layer for layer, _, _ in calls)
    groups = [[layer] for layer in layers if counts[layer] != 1]
    last: tuple[Tensor, Tensor] | None = None
    for layer, given, copied in calls:
        if counts[layer] != 1:
            last = None
            continue
        if last is not None and last[0] is given and torch.equal(last[1], copied):
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = given, copied
    return groups


@contextmanager
def _before_forward(layers: Sequence[nn.Linear], note: Callable[[nn.Linear, tuple[Tensor]], None]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _joint_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    """Return the biases of all layers in a row, zeros for those that have none; None if no layer has one.  (F,)"""
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
    )
