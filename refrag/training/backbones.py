"""Modes of the Hugging Face models inside an objective: training, recomputing activations, and where to shard them."""

from torch import nn
from transformers import PreTrainedModel

from refrag.model.backbones import has_adapter, is_of_adapter
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder


def let_train(part: nn.Module, trains: bool = True) -> None:
    """Let all of the part's parameters train, or none; of a backbone with an adapter, the adapter alone."""
    part.requires_grad_(trains)
    if isinstance(part, Decoder | ChunkEncoder) and has_adapter(part):
        for name, parameter in part.backbone.named_parameters():
            parameter.requires_grad_(trains and is_of_adapter(name))


def train_what_trains(objective: nn.Module) -> None:
    """Put all modules into training mode but those whose parameters are all frozen, so that these have no dropout.

    With gradient checkpointing a frozen layer is in training mode too, though nothing inside it is: a layer
    recomputes its activations in training mode alone, and gradients flow through a frozen decoder to the chunk
    embeddings.
    """
    objective.train()
    for module in objective.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    for module in objective.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def recompute_activations(objective: nn.Module) -> None:
    """Switch on gradient checkpointing in each Hugging Face model."""
    for module in objective.modules():
        if isinstance(module, PreTrainedModel):
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def keep_activations(objective: nn.Module) -> None:
    """Switch off gradient checkpointing in each Hugging Face model."""
    for module in objective.modules():
        if isinstance(module, PreTrainedModel) and module.is_activation_checkpointing:
            module.activation_checkpointing_disable()


def layer_classes(objective: nn.Module) -> list[str]:
    """Return the class names of the layers to shard by: those that the Hugging Face models say must not be split."""
    modules = list(objective.modules())
    present = {type(module).__name__ for module in modules}
    models = [module for module in modules if isinstance(module, PreTrainedModel)]
    return sorted(present & {name for model in models for name in model._no_split_modules or ()})
