"""Train the demo checkpoint from nothing: `python -m refrag.training.demo --output checkpoints/demo`.

Stages keep snapshots under --run and resume from them; delete that folder to start over.
"""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from refrag.config import RefragConfig
from refrag.environment import describe_environment
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.policy import ExpansionPolicy
from refrag.model.projector import Projector
from refrag.training.batches import encoder_tensors
from refrag.training.data import draw_context
from refrag.training.loop import run_stage
from refrag.training.stages import JointStage, PlainStage, ReconstructStage
from refrag.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class DemoSettings:
    """Shape and length of the demo's training; the steps took 100 minutes on two busy CPU cores."""

    vocab_size: int = 2048
    width: int = 192
    num_decoder_layers: int = 4
    num_encoder_layers: int = 2
    num_heads: int = 6
    policy_width: int = 192
    max_prompt_slots: int = 4096
    learning_rate: float = 3e-3
    plain_steps: int = 530
    reconstruct_steps: int = 412
    joint_steps: int = 2115
    seed: int = 0


def train_demo(settings: DemoSettings, run: Path) -> Checkpoint:
    """Run the three stages, and return the checkpoint with their cost as its provenance."""
    torch.manual_seed(settings.seed)
    checkpoint = make_checkpoint(settings)
    modules = checkpoint.modules
    environment = describe_environment()
    costs = {}
    plain = PlainStage(checkpoint)
    costs["plain"] = run_stage(
        "plain",
        plain.step,
        {"decoder": modules["decoder"]},
        settings.plain_steps,
        settings.learning_rate,
        settings.seed,
        run,
    )
    prepare_encoder(checkpoint, settings)
    reconstruct = ReconstructStage(checkpoint)
    costs["reconstruct"] = run_stage(
        "reconstruct",
        reconstruct.step,
        {"encoder": modules["encoder"], "projector": modules["projector"]},
        settings.reconstruct_steps,
        settings.learning_rate,
        settings.seed,
        run,
    )
    joint = JointStage(checkpoint)
    costs["joint"] = run_stage(
        "joint", joint.step, modules, settings.joint_steps, settings.learning_rate / 2, settings.seed, run
    )
    provenance = {"recipe": "python -m refrag.training.demo", "stages": costs, **environment}
    return replace(checkpoint, config=replace(checkpoint.config, provenance=provenance))


def make_checkpoint(settings: DemoSettings) -> Checkpoint:
    """A Llama-shaped decoder and a BERT-shaped encoder of random weights over one tokenizer."""
    tokenizer = train_tokenizer(settings.vocab_size, settings.seed)
    config = RefragConfig(
        chunk_size=16,
        trained_chunk_sizes=[8, 16],
        max_prompt_slots=settings.max_prompt_slots,
        encoder_length=16,
    )
    width = settings.width
    return Checkpoint(
        config=config,
        encoder=ChunkEncoder(make_encoder(settings, tokenizer), config.pooling),
        projector=Projector(width, width),
        policy=ExpansionPolicy(width, settings.policy_width, config.policy_num_heads, config.question_aware),
        decoder=Decoder(make_decoder(settings, tokenizer)),
        decoder_tokenizer=tokenizer,
    )


def make_decoder(settings: DemoSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            num_hidden_layers=settings.num_decoder_layers,
            num_attention_heads=settings.num_heads,
            intermediate_size=settings.width * 8 // 3,
            max_position_embeddings=settings.max_prompt_slots,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_encoder(settings: DemoSettings, tokenizer: PreTrainedTokenizerBase) -> BertModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        num_hidden_layers=settings.num_encoder_layers,
        num_attention_heads=settings.num_heads,
        intermediate_size=4 * settings.width,
        max_position_embeddings=64,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config, add_pooling_layer=False)


@torch.no_grad()
def prepare_encoder(checkpoint: Checkpoint, settings: DemoSettings) -> None:
    """Start the encoder from the decoder's token embeddings, and the projector at their scale."""
    embeddings = checkpoint.encoder.backbone.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    embeddings.weight.copy_(checkpoint.decoder.token_embeddings.weight)
    context = draw_context(random.Random(settings.seed), checkpoint.chunker, 4, 1, "train")
    vectors = checkpoint.encoder(*encoder_tensors(checkpoint.chunker, context.chunks))
    checkpoint.projector.match_scale(vectors, checkpoint.decoder.token_embeddings.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder for snapshots and metrics")
    arguments = parser.parse_args()
    checkpoint = train_demo(DemoSettings(), arguments.run)
    checkpoint.save(arguments.output, dtype=torch.float16)
    print(json.dumps(checkpoint.config.provenance))


if __name__ == "__main__":
    main()
