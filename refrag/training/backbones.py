"""The Hugging Face models inside an objective: which train, which recompute their activations, where to shard them."""

from torch import nn
from transformers import PreTrainedModel


def train_what_trains(objective: nn.Module) -> None:
    """Training mode for all but the modules whose every parameter is frozen: those must not drop anything out.

    A frozen layer is itself in training mode, and nothing inside it, where it is to recompute its activations: it
    does so in training mode alone, and gradients flow through a frozen decoder to the chunk embeddings.
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
    for module in objective.modules():
        if isinstance(module, PreTrainedModel) and module.is_activation_checkpointing:
            module.activation_checkpointing_disable()


def layer_classes(objective: nn.Module) -> list[str]:
    """The names of the layers to shard by: what the Hugging Face models in `objective` call indivisible and have."""
    modules = list(objective.modules())
    present = {type(module).__name__ for module in modules}
    models = [module for module in modules if isinstance(module, PreTrainedModel)]
    return sorted(present & {name for model in models for name in model._no_split_modules or ()})
