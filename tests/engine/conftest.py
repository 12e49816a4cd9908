import pytest
import torch
from engine_helpers import ARCHITECTURES, make_decoder


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def decoder(request):
    return make_decoder(request.param)


@pytest.fixture(scope="session")
def llama():
    return make_decoder("llama")


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint):
    return tiny_checkpoint.decoder_tokenizer


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they bring at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
