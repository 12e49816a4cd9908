"""What the runs of a preset cost on given hardware, before anything is downloaded: memory of each GPU, and hours.

Nothing has values here: the parts are built on the meta device from architecture and shape, and batches are shapes.
Time follows from floating-point operations: two for each weight of a matrix and token forwards, as many backwards for
the gradients of the inputs and again for those of the weights, once more forwards where activations are recomputed.
Attention counts in full, though kernels may skip what is masked; the policy's own operations do not count at all.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from refrag.config import RefragConfig
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.projector import Projector
from refrag.training.estimation.geometry import SPECIAL_TOKENS, Geometry, geometries, replay_geometries
from refrag.training.estimation.memory import (
    StaticMemory,
    compute_dtype,
    decoder_activations,
    encoder_activations,
    layers_of,
    logits_bytes,
    static_memory,
)
from refrag.training.objective import Objective
from refrag.training.pair import default_encoder_length, make_config, without_pooler
from refrag.training.recipe import make_objective
from refrag.training.settings import AnyRun, Backbone, Pair, Preset

GIB = 2**30
# For the device's context, communication, and the gaps between allocations.
RESERVED_SHARE = 0.1
FLOAT32_BYTES = 4

ASSUMPTIONS = """\
Memory is of each GPU, in GiB, at the batch that needs most. Weights, gradients and optimizer state are float32, shared
out among the GPUs (fsdp.yaml); gathered are the weights and gradients that a GPU has whole, in the precision of the
computation: two layers, and what is outside of layers. Host memory is of each process while it shards: the pair, and a
copy of what the run uses."""


@dataclass(frozen=True)
class Hardware:
    """utilisation: the share of `gpu_tflops`, the peak, that training reaches."""

    num_gpus: int = 1
    gpu_memory_gib: float = 80.0
    gpu_tflops: float = 990.0
    utilisation: float = 0.4


@dataclass(frozen=True)
class Matrices:
    """What a model computes with: the weights of its layers' matrices, the width of attention summed over layers, and
    the weights of its output head.
    """

    layers: int
    attention: int = 0
    head: int = 0

    def forward(self, rows: int, length: int, num_predicted: int = 0) -> int:
        """Floating-point operations over `rows` sequences of `length`."""
        return self.layers_forward(rows, length) + 2 * self.head * num_predicted

    def layers_forward(self, rows: int, length: int) -> int:
        return 2 * self.layers * rows * length + self._attention(rows, length)

    def backward(self, rows: int, length: int, num_predicted: int = 0, trains: bool = True) -> int:
        """Frozen weights have no gradients of their own, but those of the inputs pass through them all the same."""
        attention = self._attention(rows, length)
        return (2 if trains else 1) * (self.forward(rows, length, num_predicted) - attention) + 2 * attention

    def _attention(self, rows: int, length: int) -> int:
        return 4 * self.attention * rows * length**2


@dataclass(frozen=True)
class MetaPair:
    """A pair without values, and the configurations that it is built from."""

    checkpoint: Checkpoint
    decoder_config: PretrainedConfig
    encoder_config: PretrainedConfig

    @property
    def num_parameters(self) -> int:
        return sum(count_parameters(module) for module in self.checkpoint.modules.values())


@dataclass(frozen=True)
class RunEstimate:
    """Of one run; memory in bytes on each GPU, `tokens_per_step` and `flops_per_step` over all of them."""

    name: str
    stage: str
    trained_parameters: int
    frozen_parameters: int
    static: StaticMemory
    activations: int
    logits: int
    reserved: int
    available: int
    host: int
    longest_slots: int
    tokens_per_step: int
    flops_per_step: float
    seconds_per_step: float
    num_steps: int
    advice: list[str]

    @property
    def total(self) -> int:
        return self.static.total + self.activations + self.logits + self.reserved

    @property
    def fits(self) -> bool:
        return self.total <= self.available

    @property
    def hours(self) -> float:
        return self.seconds_per_step * self.num_steps / 3600

    def to_json(self) -> dict[str, Any]:
        more = {"total": self.total, "fits": self.fits, "hours": self.hours}
        return {**asdict(self), **more, "tokens": self.tokens_per_step * self.num_steps}


def estimate(preset: Preset, hardware: Hardware) -> list[RunEstimate]:
    """One estimate for each run, in the preset's order."""
    return [estimate_run(preset.pair, name, run, hardware) for name, run in preset.runs.items()]


def estimate_run(pair: Pair, name: str, run: AnyRun, hardware: Hardware) -> RunEstimate:
    """Several GPUs share everything out, except where Muon needs whole matrices: then each has all of it."""
    meta = build_on_meta(pair)
    objective = make_objective(meta.checkpoint, run)
    batches, replayed = geometries(pair, run), replay_geometries(pair, run)
    everything = [*batches, *replayed]
    # The parts of one step on one GPU.
    flops = run.optimisation.accumulation_steps * sum(b.share * batch_flops(objective, run, b) for b in everything)
    tokens = run.optimisation.accumulation_steps * sum(batch.share * batch.num_tokens for batch in everything)
    num_shards = 1 if run.optimisation.optimizer == "muon" else hardware.num_gpus
    static = static_memory(objective, run.optimisation, num_shards)
    # What goes with a batch is held at the same time.
    longest = [max(each, key=lambda batch: (batch.num_tokens, batch.slots)) for each in (batches, replayed) if each]
    needs = [dynamic_memory(meta, objective, run, batch) for batch in longest]
    activations, logits = (sum(parts) for parts in zip(*needs, strict=True))
    available = int(hardware.gpu_memory_gib * GIB)
    reserved = int(RESERVED_SHARE * available)
    num_used, num_trained = count_parameters(objective), count_parameters(objective, trained=True)
    slots = max(batch.slots for batch in everything)
    return RunEstimate(
        name=name,
        stage=run.stage,
        trained_parameters=num_trained,
        frozen_parameters=num_used - num_trained,
        static=static,
        activations=activations,
        logits=logits,
        reserved=reserved,
        available=available,
        host=FLOAT32_BYTES * (meta.num_parameters + (num_used if num_shards > 1 else 0)),
        longest_slots=slots,
        tokens_per_step=round(tokens * hardware.num_gpus),
        flops_per_step=flops * hardware.num_gpus,
        seconds_per_step=flops / (hardware.gpu_tflops * 1e12 * hardware.utilisation),
        num_steps=run.optimisation.num_steps,
        advice=[
            *_advise_on_slots(slots, pair),
            *_advise_on_memory(run, longest[0], available - reserved, static.total, activations + logits),
        ],
    )


def build_on_meta(pair: Pair) -> MetaPair:
    """The parts of the pair, from the shapes in the preset, or from the configuration beside the pretrained weights."""
    decoder_config = load_config(pair.decoder, {"vocab_size": pair.vocab_size})
    encoder_config = load_config(pair.encoder, {"vocab_size": pair.vocab_size})
    config = RefragConfig(
        chunk_size=pair.chunk_size,
        trained_chunk_sizes=pair.trained_chunk_sizes,
        max_prompt_slots=pair.max_prompt_slots,
        encoder_length=pair.encoder_length
        or default_encoder_length(pair, SPECIAL_TOKENS if pair.encoder.pretrained else None),
        pooling=pair.pooling,
        policy_num_heads=pair.policy_num_heads,
    )
    with torch.device("meta"):
        decoder = Decoder(AutoModelForCausalLM.from_config(decoder_config))
        encoder = ChunkEncoder(without_pooler(AutoModel.from_config(encoder_config)), pair.pooling)
        checkpoint = Checkpoint(
            config=config,
            encoder=encoder,
            projector=Projector(encoder.width, decoder.width),
            policy=ExpansionPolicy(encoder.width, pair.policy_width, pair.policy_num_heads),
            decoder=decoder,
            # Nothing is tokenised: an empty tokenizer says that it has no special tokens.
            decoder_tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        )
    return MetaPair(checkpoint, decoder_config, encoder_config)


def load_config(backbone: Backbone, own: dict[str, Any]) -> PretrainedConfig:
    if backbone.architecture is not None:
        return make_config(backbone, {} if backbone.pretrained else own)
    assert backbone.pretrained is not None
    return AutoConfig.from_pretrained(backbone.pretrained)


def count_parameters(module: nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


def dynamic_memory(meta: MetaPair, objective: Objective, run: AnyRun, batch: Geometry) -> tuple[int, int]:
    """Bytes of activations and of logits at this batch."""
    dtype, recompute = compute_dtype(run.optimisation), run.optimisation.gradient_checkpointing
    needs_gradients = not objective.needs_rollout
    trains = count_parameters(objective.get_submodule("decoder"), trained=True) > 0 or not needs_gradients
    kept = [decoder_activations(meta.decoder_config, batch, dtype, trains)]
    if batch.num_chunks:
        kept.append(encoder_activations(meta.encoder_config, batch, dtype))
    activations = sum(each.total(recompute) if needs_gradients else each.layer for each in kept)
    return activations, logits_bytes(batch, meta.checkpoint.decoder.vocab_size, dtype)


def batch_flops(objective: Objective, run: AnyRun, batch: Geometry) -> int:
    """Floating-point operations of one batch, forwards and backwards."""
    parts = [(objective.get_submodule("decoder"), (batch.rows, batch.slots, batch.num_predicted))]
    if batch.num_chunks:
        parts.append((objective.get_submodule("encoder"), (batch.num_chunks, batch.chunk_tokens, 0)))
        parts.append((objective.get_submodule("projector"), (batch.num_chunks, 1, 0)))
    total = 0
    for module, shape in parts:
        matrices = matrices_of(module)
        total += matrices.forward(*shape)
        if not objective.needs_rollout:
            total += matrices.backward(*shape, trains=count_parameters(module, trained=True) > 0)
            if run.optimisation.gradient_checkpointing:
                total += matrices.layers_forward(*shape[:2])
    return total


def matrices_of(module: nn.Module) -> Matrices:
    """Of a decoder, an encoder, or a part without layers, which computes with all of its matrices."""
    if not isinstance(module, Decoder | ChunkEncoder):
        return Matrices(sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2))
    config, backbone = module.backbone.config, module.backbone
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Matrices(
        layers=sum(each.numel() for layer in layers_of(backbone) for each in layer.parameters() if each.dim() == 2),
        attention=config.num_hidden_layers * config.num_attention_heads * head_width,
        head=backbone.get_output_embeddings().weight.numel() if isinstance(module, Decoder) else 0,
    )


def report(runs: Sequence[RunEstimate], hardware: Hardware) -> str:
    """Two tables, of memory and of time, and what to change."""
    gpus = f"{hardware.num_gpus} GPU{'s' if hardware.num_gpus > 1 else ''}"
    peak = f"{hardware.gpu_tflops:g} TFLOP/s each, {hardware.utilisation:.0%} of them reached"
    lines = [
        f"{gpus} of {hardware.gpu_memory_gib:g} GiB and {peak}",
        "",
        *memory_table(runs),
        "",
        *time_table(runs),
        "",
    ]
    lines += [f"{run.name}: {each}" for run in runs for each in run.advice]
    return "\n".join([*lines, ASSUMPTIONS])


def memory_table(runs: Sequence[RunEstimate]) -> list[str]:
    header = "run|trains|frozen|weights|gradients|optimizer|gathered|activations|logits|reserve|total|fits|host"
    return _table(header, [_memory_row(run) for run in runs])


def _memory_row(run: RunEstimate) -> list[str]:
    parameters = [f"{count / 1e6:.1f}M" for count in (run.trained_parameters, run.frozen_parameters)]
    static = [run.static.weights, run.static.gradients, run.static.optimizer, run.static.gathered]
    sizes = [f"{size / GIB:.2f}" for size in (*static, run.activations, run.logits, run.reserved, run.total)]
    return [run.name, *parameters, *sizes, "yes" if run.fits else "NO", f"{run.host / GIB:.2f}"]


def time_table(runs: Sequence[RunEstimate]) -> list[str]:
    header = "run|steps|longest|tokens/step|TFLOP/step|s/step|hours|tokens"
    rows = [
        [
            run.name,
            f"{run.num_steps}",
            f"{run.longest_slots} slots",
            f"{run.tokens_per_step}",
            f"{run.flops_per_step / 1e12:.3g}",
            f"{run.seconds_per_step:.3g}",
            f"{run.hours:.3g}",
            f"{run.tokens_per_step * run.num_steps / 1e9:.3g}G",
        ]
        for run in runs
    ]
    total = ["all", "", "", "", "", "", f"{sum(run.hours for run in runs):.3g}", ""]
    return _table(header, [*rows, total])


def _table(header: str, rows: list[list[str]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    table = [header.split("|"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _advise_on_slots(longest_slots: int, pair: Pair) -> list[str]:
    if longest_slots <= pair.max_prompt_slots:
        return []
    return [
        f"its longest example has {longest_slots} slots, and pair.max_prompt_slots is {pair.max_prompt_slots}; take "
        "the largest numbers of chunks from its curriculum, or fewer passages"
    ]


def _advise_on_memory(run: AnyRun, longest: Geometry, room: int, static: int, dynamic: int) -> list[str]:
    """What to change first where it does not fit."""
    if static + dynamic <= room:
        return []
    if static > room:
        return [f"weights, gradients and optimizer alone need {static / GIB:.1f} GiB on each GPU: use more GPUs"]
    if not run.optimisation.gradient_checkpointing:
        return ["activations do not fit: set its optimisation.gradient_checkpointing to true"]
    if longest.rows > 1:
        fitting = int(run.tokens_per_step * (room - static) / dynamic)
        return [f"activations do not fit: lower its tokens_per_step to {fitting}, and raise accumulation_steps instead"]
    return ["one example alone does not fit: make its longest examples shorter, or use more GPUs"]
