"""The decoder `torch`: our own engine, which serves any Hugging Face causal LM on a CPU or a GPU."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from refrag.config import RefragConfig
from refrag.context.chunking import null_question_ids
from refrag.decoders.base import DecoderRequest, Limits, Observe, Sink
from refrag.decoders.worker import WorkerDecoder
from refrag.engine.engine import Engine
from refrag.engine.int8_linear import quantise_decoder
from refrag.engine.prefix import block_keys
from refrag.engine.request import EngineRequest
from refrag.engine.sensing import Senses
from refrag.engine.settings import EngineSettings
from refrag.engine.worker import EngineWorker
from refrag.errors import SetupError
from refrag.machine.threads import compute_alone
from refrag.model.attention_heads import load_heads
from refrag.model.checkpoint import load_decoder
from refrag.model.tokenizers import load_decoder_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "int8")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class TorchSettings(EngineSettings):
    """Settings of the engine and of its place on the machine. Raises SetupError for values that are not allowed.

    device: cpu, cuda or cuda:N. dtype: type of weights and KV cache; float32, bfloat16 or float16.
    quantization: none, or int8 for linear layers in 8 bits, on a CPU.
    num_threads: CPU threads of the decoder, 0 for all cores.
    """

    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "none"
    num_threads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise SetupError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.quantization not in QUANTIZATIONS:
            raise SetupError(f"quantization is {self.quantization!r}; it must be one of {', '.join(QUANTIZATIONS)}")
        if self.quantization == "int8" and (self.device, self.dtype) != ("cpu", "float32"):
            raise SetupError(
                f"quantization is 'int8' with device {self.device!r} and dtype {self.dtype!r}; it is for cpu and "
                "float32 alone"
            )
        if not DEVICE.fullmatch(self.device):
            raise SetupError(f"device is {self.device!r}; it must be cpu, cuda or cuda:N")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise SetupError(
                f"device is {self.device!r}, but torch finds no CUDA device; set it to cpu, or install a CUDA build of "
                "torch and give the server's container a GPU"
            )


class TorchDecoder(WorkerDecoder):
    """An engine in a thread of its own. See `DecoderBackend`."""

    settings_type: ClassVar[type[TorchSettings]] = TorchSettings
    lets_choose: ClassVar[bool] = True
    shows_attention: ClassVar[bool] = True
    worker: EngineWorker

    def __init__(self, checkpoint: Path, settings: TorchSettings, observe: Observe) -> None:
        window = RefragConfig.load(checkpoint).max_prompt_slots
        self.settings = settings
        num_cores = compute_alone()
        num_threads = settings.num_threads or num_cores
        self.worker = EngineWorker(lambda: open_engine(checkpoint, settings, window, num_threads), observe)
        decoder = self.worker.engine.runner.decoder
        self.limits = Limits(decoder.vocab_size, decoder.width, window)

    def submit(self, request: DecoderRequest, sink: Sink) -> None:
        # Hashed by the thread that submits, since the engine's has answers to compute. Of the background nothing is
        # kept: it would take the place of prompts that callers may send again.
        block_size, vocab_size = self.settings.block_size, self.limits.vocab_size
        keys = [] if request.is_background else block_keys(request.prompt, block_size, vocab_size)
        self.worker.submit(EngineRequest(**vars(request), keys=keys), sink)


def open_engine(checkpoint: Path, settings: TorchSettings, window: int, num_threads: int) -> Engine:
    """Load an engine. Call it in the thread that will step the engine: `num_threads` holds for the caller alone."""
    torch.set_num_threads(num_threads)
    decoder = load_decoder(checkpoint, DTYPES[settings.dtype]).to(settings.device)
    tokenizer = load_decoder_tokenizer(checkpoint)
    # Before the weights are packed or rounded.
    senses = Senses(load_heads(checkpoint, decoder), null_question_ids(RefragConfig.load(checkpoint), tokenizer))
    if settings.quantization == "int8":
        quantise_decoder(decoder)
    return Engine(decoder, tokenizer, window, settings, senses=senses)
