"""Estimates what the runs of a preset need on given hardware, without any weights: memory of each GPU, and hours.

Tensors have no values: the parts are on the meta device, built from architecture and shape. In each part torch counts
the operations of a short forward and backward pass, and the bytes kept between the two. Operations grow as a quadratic
function of the length of the rows, bytes in proportion to it, and both in proportion to the number of layers, which
are taken to be alike. Slots that attention masks count in full, though kernels may skip them; the policy's own
operations do not count at all, nor do the slots of a template around passages and question.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

from refrag.base_models.cache import find
from refrag.config import PromptTemplate
from refrag.errors import TrainingError
from refrag.model.checkpoint import Checkpoint
from refrag.reporting import table
from refrag.training.backbones import layer_classes, recompute_activations, train_what_trains
from refrag.training.objective import Objective
from refrag.training.optimizer import make_optimizer
from refrag.training.pair import add_adapters, join_parts, make_config
from refrag.training.pair_settings import Backbone, Pair
from refrag.training.preset import Preset
from refrag.training.recipe import make_objective
from refrag.training.settings import AnyRun, Optimisation
from refrag.training.shapes import BatchShape, batch_shapes, replay_shapes

GIB, FLOAT32_BYTES = 2**30, 4
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "auto": torch.bfloat16}
# Share of a GPU's memory kept for the device's context, communication, and gaps between allocations.
RESERVED_SHARE = 0.1
# Bytes kept for each logit: as it is computed, in float32 if it was not, and as a log-probability. Its gradients take
# the same room later.
LOGIT_BYTES = {"no": 4 + 4, "bf16": 2 + 4 + 4, "auto": 2 + 4 + 4}
# Slots of the shorter of the two rows on which torch counts; the longer one has twice as many.
SHORT = 8
ATTENTION = "fused_on_meta"

ASSUMPTIONS = """\
Memory is given for each GPU, in GiB, for the batch that needs most; activations include logits. Weights, gradients
and optimizer state are float32 and divided among the GPUs (fsdp.yaml). "gathered" are the weights and gradients that a
GPU holds whole, in the precision of the computation: two layers, and all that is outside of layers. "host" is the
memory of each process while it shards: the pair, and a copy of what the run uses. "longest" is the longest example, in
slots; it has to fit into pair.max_prompt_slots. Passages and questions count as long as those of the made-up world,
also where they come from files, and what a chat puts around them is left out: leave room for both. Where memory does
not fit, set optimisation.gradient_checkpointing to true; if that is not enough, lower tokens_per_step and raise
accumulation_steps in return; then use more GPUs."""

# Operations per slot of a row, operations per square of the number of slots, and bytes kept per slot.  (3,)
Cost = np.ndarray
OPERATIONS, BYTES = np.array([1, 1, 0]), np.array([0, 0, 1])


@dataclass(frozen=True)
class Hardware:
    """GPUs to train on.

    gpu_tflops: peak of each GPU in the precision of the training, in TFLOP/s.
    utilisation: share of the peak that training reaches.
    """

    num_gpus: int = 1
    gpu_memory_gib: float = 80.0
    gpu_tflops: float = 990.0
    utilisation: float = 0.4


@dataclass(frozen=True)
class RunEstimate:
    """Needs of one run.

    memory: bytes on each GPU, by what they are for.
    host: bytes of host memory of each process.
    longest_slots: slots of the longest example.
    tokens: tokens that all GPUs read in the whole run.
    """

    name: str
    trained_parameters: int
    frozen_parameters: int
    memory: dict[str, int]
    fits: bool
    host: int
    longest_slots: int
    tokens: int
    hours: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": sum(self.memory.values())}


def estimate(preset: Preset, hardware: Hardware) -> list[RunEstimate]:
    """Estimate each run of the preset, in its order."""
    return [estimate_run(preset.pair_of(name), name, run, hardware) for name, run in preset.runs.items()]


def estimate_run(pair: Pair, name: str, run: AnyRun, hardware: Hardware) -> RunEstimate:
    """Estimate one run. The GPUs divide all state among them, except with Muon, whose whole matrices each GPU holds."""
    checkpoint, optimisation = build_on_meta(pair), run.optimisation
    objective = make_objective(checkpoint, run)
    num_used, num_trained = count_parameters(objective), count_parameters(objective, trained=True)
    num_shards = 1 if optimisation.optimizer == "muon" else hardware.num_gpus
    num_on_host = sum(map(count_parameters, checkpoint.modules.values())) + (num_used if num_shards > 1 else 0)
    static, costs = static_memory(objective, optimisation, num_shards), part_costs(objective, optimisation)
    # Replayed text joins a batch of questions, so both are in memory at the same time.
    kinds = batch_shapes(pair, run), replay_shapes(pair, run)
    dynamic = sum(max((batch_cost(costs, batch)[1] for batch in batches), default=0.0) for batches in kinds)
    batches, available = [batch for batches in kinds for batch in batches], int(hardware.gpu_memory_gib * GIB)
    memory = {**static, "activations": int(dynamic), "reserve": int(RESERVED_SHARE * available)}
    # Batches of one GPU in the whole run.
    num_batches = optimisation.accumulation_steps * optimisation.num_steps
    flops = num_batches * sum(batch.share * batch_cost(costs, batch)[0] for batch in batches)
    return RunEstimate(
        name=name,
        trained_parameters=num_trained,
        frozen_parameters=num_used - num_trained,
        memory=memory,
        fits=sum(memory.values()) <= available,
        host=FLOAT32_BYTES * num_on_host,
        longest_slots=max(batch.slots for batch in batches),
        tokens=round(hardware.num_gpus * num_batches * sum(batch.share * batch.num_tokens for batch in batches)),
        hours=flops / (hardware.gpu_tflops * 1e12 * hardware.utilisation) / 3600,
    )


def report(runs: Sequence[RunEstimate], hardware: Hardware) -> str:
    """Return a table in Markdown with one row for each run, and what its figures mean."""
    gpus = f"{hardware.num_gpus} GPU{'s' if hardware.num_gpus > 1 else ''} of {hardware.gpu_memory_gib:g} GiB"
    about = f"{gpus} and {hardware.gpu_tflops:g} TFLOP/s each, {hardware.utilisation:.0%} of them reached"
    header = ["run", "trains", "frozen", *runs[0].memory, "total", "fits", "host", "longest", "tokens", "hours"]
    rows = []
    for run in runs:
        parameters = [f"{count / 1e6:.1f}M" for count in (run.trained_parameters, run.frozen_parameters)]
        memory = [f"{size / GIB:.2f}" for size in (*run.memory.values(), sum(run.memory.values()))]
        fits = ["yes" if run.fits else "NO", f"{run.host / GIB:.2f}", run.longest_slots]
        rows.append([run.name, *parameters, *memory, *fits, f"{run.tokens / 1e9:.3g}G", f"{run.hours:.3g}"])
    rows.append(["all", *[""] * (len(header) - 2), f"{sum(run.hours for run in runs):.3g}"])
    return "\n\n".join([about, table(header, rows), ASSUMPTIONS])


def build_on_meta(pair: Pair) -> Checkpoint:
    """Build the pair without values, from the preset's shapes or from the configurations beside pretrained weights."""
    # Attention registered under a name of its own gets no mask, which could only be made from values.
    AttentionInterface.register(ATTENTION, _attend_on_meta)
    decoder, encoder = (_load_config(backbone, pair) for backbone in (pair.decoder, pair.encoder))
    with torch.device("meta"):
        checkpoint = join_parts(
            # The tokenizer below has no chat template that a chat's frame could be read off.
            pair.model_copy(update={"template": PromptTemplate()}),
            AutoModelForCausalLM.from_config(decoder, attn_implementation=ATTENTION),
            AutoModel.from_config(encoder, attn_implementation=ATTENTION),
            # Nothing is tokenised, so an empty tokenizer will do; it has no special tokens.
            PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        )
        add_adapters(checkpoint, pair)
    return checkpoint


def count_parameters(module: nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def static_memory(objective: nn.Module, optimisation: Optimisation, num_shards: int) -> dict[str, int]:
    """Return the bytes that each GPU holds whatever the batch is, by what they are for."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(objective, optimisation)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    tensors = {"weights": objective.parameters(), "gradients": trained, "optimizer": state}
    shares = {name: sum(tensor.nbytes for tensor in each) // num_shards for name, each in tensors.items()}
    itemsize = DTYPES[optimisation.mixed_precision].itemsize
    return {**shares, "gathered": 0 if num_shards == 1 else _num_gathered(objective) * itemsize}


def part_costs(objective: Objective, optimisation: Optimisation) -> dict[str, Cost]:
    """Return the cost of each part of an objective on the meta device, and put the objective into training's state."""
    objective.to(DTYPES[optimisation.mixed_precision])
    if objective.needs_rollout:
        # A rollout keeps nothing, but a layer at work holds about what it would keep if it trained.
        objective.requires_grad_(True)
    costs, layers = _measure(objective)
    if objective.needs_rollout:
        costs = {name: OPERATIONS * cost + BYTES * layers[name] for name, cost in costs.items()}
    elif optimisation.gradient_checkpointing:
        recompute_activations(objective)
        # Each layer keeps its input; one layer at a time keeps all that its backward pass needs.
        costs = {name: cost + BYTES * layers[name] for name, cost in _measure(objective)[0].items()}
    if "encoder" in costs and not objective.needs_rollout and not _trains(objective.get_submodule("encoder")):
        # It keeps nothing either, but for the layer at work.
        objective.get_submodule("encoder").requires_grad_(True)
        costs["encoder"] = OPERATIONS * costs["encoder"] + BYTES * _measure(objective)[1]["encoder"]
    if "head" in costs:
        decoder: Any = objective.get_submodule("decoder")
        costs["head"] += BYTES * LOGIT_BYTES[optimisation.mixed_precision] * decoder.vocab_size
    return costs


def batch_cost(costs: dict[str, Cost], batch: BatchShape) -> tuple[float, float]:
    """Return the operations of a batch's forward and backward passes, and the bytes kept between them."""
    rows = {"decoder": (batch.rows, batch.slots), "head": (1, batch.num_predicted)} if batch.rows else {}
    if batch.num_chunks:
        rows |= {"encoder": (batch.num_chunks, batch.chunk_tokens), "projector": (1, batch.num_chunks)}
    # Selection has an encoder and no projector.
    each = [costs[name] * count * [slots, slots**2, slots] for name, (count, slots) in rows.items() if name in costs]
    linear, square, num_bytes = np.sum(each, axis=0)
    return linear + square, num_bytes


def _trains(part: nn.Module) -> bool:
    return count_parameters(part, trained=True) > 0


def _measure(objective: Objective) -> tuple[dict[str, Cost], dict[str, Cost]]:
    """Return the cost of each part, and of one of its layers, measured with one layer left in it and with two."""
    train_what_trains(objective)
    costs: dict[str, Cost] = {}
    of_layers: dict[str, Cost] = {}
    for name, (module, read) in _parts(objective).items():
        lists = [each for each in module.modules() if isinstance(each, nn.ModuleList) and len(each)]
        layers = next((each for each in lists if isinstance(each[0], GradientCheckpointingLayer)), nn.ModuleList())
        everything = list(layers)
        del layers[1:]
        one = _curve(objective, read)
        layers.extend(everything[1:2])
        two = _curve(objective, read)
        layers.extend(everything[2:])
        of_layers[name] = two - one if len(everything) > 1 else one * len(everything)
        costs[name] = one + max(0, len(everything) - 1) * of_layers[name]
    return costs, of_layers


def _parts(objective: Objective) -> dict[str, tuple[nn.Module, Callable[[int], Tensor]]]:
    """Return each part that has a cost, with a function by which it reads one row of that many slots."""
    children, dtype = dict(objective.named_children()), next(objective.parameters()).dtype

    def embedded(slots: int, width: int) -> Tensor:
        return torch.empty(1, slots, width, dtype=dtype, device="meta", requires_grad=True)

    parts: dict[str, tuple[nn.Module, Callable[[int], Tensor]]] = {}
    if "decoder" in children:
        decoder: Any = children["decoder"]
        parts["decoder"] = decoder, lambda slots: decoder.read(embedded(slots, decoder.width))
        parts["head"] = nn.Identity(), lambda slots: decoder.logits(embedded(slots, decoder.width))
    if "encoder" in children:
        encoder: Any = children["encoder"]
        parts["encoder"] = encoder, lambda slots: encoder(*torch.ones(2, 1, slots, dtype=torch.long, device="meta"))
        if "projector" in children:
            parts["projector"] = nn.Identity(), lambda slots: children["projector"](embedded(slots, encoder.width))
    return parts


def _curve(objective: Objective, read: Callable[[int], Tensor]) -> Cost:
    """Return the cost that fits both the shorter and the longer row; a rollout has no backward pass."""
    short, long = (_count(objective, read, slots) for slots in (SHORT, 2 * SHORT))
    linear, square = (4 * short - long) / (2 * SHORT), (long - 2 * short) / (2 * SHORT**2)
    return np.array([linear[0], square[0], linear[1]])


def _count(objective: Objective, read: Callable[[int], Tensor], slots: int) -> np.ndarray:
    """Return the operations on one row, and the bytes kept between the passes, without those of weights."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        output = read(slots)
        # A frozen encoder has no backward pass either.
        if output.requires_grad and not objective.needs_rollout:
            output.sum().backward()
    for weight in (*objective.parameters(), *objective.buffers()):
        kept.pop(weight.untyped_storage()._cdata, None)
    num_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return np.array([counter.get_total_flops(), num_bytes], dtype=float)


def _attend_on_meta(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, dropout: float = 0.0, **_: Any
) -> tuple[Tensor, None]:
    """Attend as GPUs do, keeping no attention weights; heads that share keys and values keep them once."""
    key, value = (each[:, :1].expand(-1, query.shape[1], -1, -1) for each in (key, value))
    output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout)[0]
    return output.transpose(1, 2).contiguous(), None


def _num_gathered(objective: nn.Module) -> int:
    """Return how many numbers a GPU holds whole: weights of two layers, gradients of one, and all outside of layers."""
    names, num = layer_classes(objective), 0
    layers = [module for module in objective.modules() if type(module).__name__ in names]
    for trained, at_a_time in ((False, 2), (True, 1)):
        sizes = [count_parameters(layer, trained) for layer in layers]
        num += count_parameters(objective, trained) - sum(sizes) + at_a_time * max(sizes)
    return num


def _load_config(backbone: Backbone, pair: Pair) -> Any:
    if backbone.architecture is None:
        return AutoConfig.from_pretrained(_place_of_config(backbone))
    return make_config(backbone, {} if backbone.pretrained else {"vocab_size": pair.vocab_size})


def _place_of_config(backbone: Backbone) -> str:
    """Return the folder or the hub's name; raise TrainingError for a base model that would have to be fetched."""
    assert backbone.pretrained is not None
    if isinstance(backbone.pretrained, str):
        return backbone.pretrained
    folder = find(backbone.pretrained)
    if folder is None:
        raise TrainingError(
            f"{backbone.pretrained} is not on this machine, and an estimate downloads nothing; give its architecture "
            "and shape beside `pretrained`, or run `refrag fetch` with the preset first"
        )
    return str(folder)
