"""Hugging Face pairs go through every stage: each family of decoders and encoders, 32 wide, loaded as from the hub."""

import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SentencePieceBackend,
)

from refrag.context.chunking import Chunk
from refrag.data.world.world import make_document, make_world
from refrag.errors import CheckpointError, TrainingError
from refrag.model.decoder import Decoder
from refrag.model.encoder import ChunkEncoder
from refrag.model.faults import packing_fault
from refrag.pipeline import Pipeline
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag.teacher_forcing.batches import MixedExample, Segment, collate_mixed
from refrag.teacher_forcing.predict import encode, predict
from refrag.training.fit import refuse_packing
from refrag.training.pair import encoder_batch, make_decoder, make_encoder, make_pair, sample_chunks
from refrag.training.pair_settings import Backbone, Pair
from refrag.training.preset import Preset
from refrag.training.recipe import load_run, train_run
from refrag.training.settings import Finetune

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
VOCAB_SIZE, ENCODER_VOCAB_SIZE = 400, 700
# Shorter than the prompts of these tests, which are thus cut off by it.
WINDOW = 24
DECODER_SHAPE = {
    # The class of a family's tokenizer adds tokens of its own.
    "vocab_size": VOCAB_SIZE + 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Large, so that what a slot should not see would show in its loss.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING_AND_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
SLIDING_LAST = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
DECODERS = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    # Caps so low that a logit without one is another.
    "gemma2": {**SLIDING_AND_FULL, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 3.0},
    "gemma3_text": {**SLIDING_AND_FULL, "final_logit_softcapping": 3.0},
    "phi3": {"sliding_window": WINDOW},
}
ENCODER_SHAPE = {
    "vocab_size": ENCODER_VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 1,
}
ENCODERS = {
    "bert": {"max_position_embeddings": 64},
    "roberta": {"max_position_embeddings": 66},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}
# What each run of `recipe` trains; everything else must stay as it is.
TRAINED = {
    "pretrain": {"decoder"},
    "reconstruct": {"encoder", "projector"},
    "continue": {"encoder", "projector", "decoder"},
    "finetune": {"encoder", "projector", "policy", "decoder"},
    "policy": {"policy"},
    "policy_blind": {"policy"},
    "plain_continue": {"decoder"},
    "plain_finetune": {"decoder"},
}


def documents(count=40):
    rng = random.Random(0)
    return [make_document(rng, make_world(rng, 6, "train")) for _ in range(count)]


def byte_level(vocab_size, special_tokens):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    return tokenizer


def word_pieces(special_tokens):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=ENCODER_VOCAB_SIZE, special_tokens=special_tokens, show_progress=False
    )
    tokenizer.train_from_iterator(documents(), trainer)
    return tokenizer


def decoder_tokenizer(family):
    """Qwen has no BOS, and the first Llamas have no padding."""
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    absent = {"llama": "pad_token", "qwen2": "bos_token", "qwen3": "bos_token"}.get(family)
    special.pop(absent, None)
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(VOCAB_SIZE, [PAD, BOS, EOS]), **special)


def encoder_tokenizer(family):
    first, last = (BOS, EOS) if family == "roberta" else ("[CLS]", "[SEP]")
    special = {"cls_token": first, "sep_token": last, "pad_token": PAD, "unk_token": "[UNK]", "mask_token": "[MASK]"}
    names = [special["unk_token"], PAD, first, last, special["mask_token"]]
    tokenizer = word_pieces(names) if family == "bert" else byte_level(ENCODER_VOCAB_SIZE, names)
    ends = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_decoder(family, **shape):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**DECODER_SHAPE, **DECODERS[family], **shape})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saves a family's model with its tokenizer when it is first asked for; the folder, as `pretrained` takes it."""
    saved = {}

    def save(family):
        if family not in saved:
            folder = tmp_path_factory.mktemp(family)
            if family in DECODERS:
                # A usual size: weights as large as in the equalities would hardly move in two steps.
                model, tokenizer = random_decoder(family, initializer_range=0.02), decoder_tokenizer(family)
            else:
                # As on the hub: with the head of masked language modelling, which nobody needs here.
                config = AutoConfig.for_model(family, **{**ENCODER_SHAPE, **ENCODERS[family]})
                model, tokenizer = AutoModelForMaskedLM.from_config(config), encoder_tokenizer(family)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            saved[family] = str(folder)
        return saved[family]

    return save


def pair(decoder, encoder, **settings):
    backbones = {"decoder": Backbone(pretrained=decoder), "encoder": Backbone(pretrained=encoder)}
    sizes = {"chunk_size": 8, "trained_chunk_sizes": [4, 8], "policy_width": 16, "max_prompt_slots": 512}
    return Pair(**{**backbones, **sizes, **settings})


def recipe(pair):
    """Return every stage in each of its forms, two steps of one small batch each."""
    step = {"num_steps": 2, "learning_rate": 1e-2}
    text = {"sources": [{"kind": "world"}], "tokens_per_step": 128, "optimisation": step}
    text["curriculum"] = {"num_chunks": [6], "ratios": [1.0], "num_stages": 1}
    # Activations are recomputed where nothing is random: dropout would leave nothing to compare.
    again = {**text, "optimisation": {**step, "gradient_checkpointing": True}, "expand_fractions": [0.5]}
    questions = {"tokens_per_step": 128, "optimisation": step, "max_passages": 2}
    continuation = {"stage": "continue", "continuation_tokens": 16}
    policy = {"stage": "policy", "start": "finetune", "group_size": 2, **questions}
    return Preset(
        description="Every stage.",
        pair=pair,
        runs={
            "pretrain": {
                "stage": "pretrain",
                "sources": text["sources"],
                "window_tokens": 64,
                "text_share": 0.5,
                **questions,
            },
            "reconstruct": {"stage": "reconstruct", "start": "pretrain", **text},
            "continue": {"start": "reconstruct", **continuation, **again},
            "finetune": {"stage": "finetune", "start": "continue", **questions},
            "policy": policy,
            "policy_blind": {**policy, "question_aware": False, "fresh": True},
            "plain_continue": {"start": "reconstruct", **continuation, **text, "form": "plain"},
            "plain_finetune": {"stage": "finetune", "start": "plain_continue", "form": "plain", **questions},
        },
        result="policy",
    )


def without_pretraining(preset):
    """Return the preset with only the runs that involve the encoder; the first starts from the untrained pair."""
    runs = {name: preset.runs[name] for name in ("reconstruct", "continue", "finetune", "policy")}
    runs["reconstruct"] = runs["reconstruct"].model_copy(update={"start": None})
    return preset.model_copy(update={"runs": runs})


# A loaded encoder has a pooler that it never uses, and the policy biases that add the same to all logits: their
# gradient is zero up to rounding, so that they change or not by chance.
WITHOUT_GRADIENT = ("pooler", "score.bias", "key.bias")


def weights(checkpoint):
    """Return the values of each part as saved that training must change."""
    values = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        part = path.stem if path.parent == checkpoint else path.parent.name
        values[part] = {
            name: value
            for name, value in load_file(path).items()
            if not any(without in name for without in WITHOUT_GRADIENT)
        }
    return values


def changed(before, after):
    """Return the parts of which every weight has changed, and those of which some have."""
    differs = {
        part: [not torch.equal(value, after[part][name]) for name, value in values.items()]
        for part, values in before.items()
    }
    return {part for part, each in differs.items() if all(each)}, {part for part, each in differs.items() if any(each)}


def train_every_stage(preset, runs):
    """Train run after run, and see what each one changed; the checkpoint of the result, loaded again."""
    make_pair(preset.pair).save(runs / "pair" / "checkpoint")
    for name, run in preset.runs.items():
        cost = train_run(preset, name, runs)
        before, after = (weights(runs / each / "checkpoint") for each in (run.start or "pair", name))
        assert math.isfinite(cost["loss"]), name
        assert changed(before, after) == (TRAINED[name], TRAINED[name]), name
    return load_run(preset, runs)


def assert_answers(checkpoint):
    """Assert that the prompt with every chunk expanded is the plain one: its answer is what transformers generates."""
    pipeline, passages = Pipeline(checkpoint), [text[:150] for text in documents(2)]
    sampling = SamplingParams(max_tokens=4)
    mixed = pipeline.answer(Request("who?", passages, ExpansionOptions(0.3)), sampling)
    assert mixed.prompt.compressed.size and mixed.expanded
    plain = pipeline.answer(Request("who?", passages, ExpansionOptions(policy="all")), sampling)
    prompt = torch.from_numpy(plain.prompt.input_ids).long().unsqueeze(0)
    own = checkpoint.decoder.backbone.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert plain.token_ids == [token for token in own if token not in checkpoint.decoder.eos_ids]


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_of_any_family_trains_in_every_stage_and_answers(family, folders, tmp_path):
    assert_answers(train_every_stage(recipe(pair(folders(family), folders("roberta"))), tmp_path))


@pytest.mark.parametrize("family", [family for family in ENCODERS if family != "roberta"])
def test_an_encoder_of_any_family_trains_in_every_stage_and_answers(family, folders, tmp_path):
    preset = without_pretraining(recipe(pair(folders("llama"), folders(family))))
    assert_answers(train_every_stage(preset, tmp_path))


@pytest.mark.parametrize("family", DECODERS)
def test_what_training_reads_is_what_the_family_itself_says(family):
    decoder = Decoder(random_decoder(family))
    input_ids = torch.randint(3, VOCAB_SIZE, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(0))
    embedded = decoder.embed_prompt(input_ids, torch.zeros(0, decoder.width))
    own = decoder.backbone(input_ids=input_ids).logits
    torch.testing.assert_close(decoder.logits(decoder.read(embedded)), own)
    if decoder.backbone.config.to_dict().get("final_logit_softcapping"):
        assert own.abs().max() <= 3.0


@pytest.mark.parametrize("family", DECODERS)
def test_chunk_embeddings_enter_at_the_scale_that_tokens_have_behind_their_embedding(family):
    """Gemma scales token embeddings by the root of the width: once, and chunk embeddings not again."""
    decoder = Decoder(random_decoder(family))
    tokens = torch.arange(10, 30)
    rows = torch.arange(decoder.vocab_size, decoder.vocab_size + len(tokens))
    as_tokens = decoder.embed_prompt(tokens, torch.zeros(0, decoder.width))
    as_chunks = decoder.embed_prompt(rows, decoder.token_embeddings(tokens))
    assert torch.equal(as_chunks, as_tokens)
    scale = decoder.width**0.5 if family.startswith("gemma") else 1.0
    torch.testing.assert_close(as_tokens, decoder.token_embeddings.weight[tokens] * scale)


@pytest.mark.parametrize("family", DECODERS)
def test_packed_rows_have_the_losses_of_one_example_per_row(family):
    decoder = Decoder(random_decoder(family))
    rng = random.Random(0)
    examples, num_chunks = [], 0
    for length in (WINDOW + 20, 9, WINDOW + 5, 30, 2):
        run = [Chunk(tuple(rng.choices(range(3, VOCAB_SIZE), k=4)), 0) for _ in range(6)]
        segment = Segment(rng.choices(range(3, VOCAB_SIZE), k=length), 1.0)
        examples.append(MixedExample(run, {1, 4}, [segment], first_row=num_chunks))
        num_chunks += len(run)
    embeddings = torch.randn(num_chunks, decoder.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = predict(decoder, collate_mixed(examples, VOCAB_SIZE, [1]), embeddings)
        packed = predict(decoder, collate_mixed(examples, VOCAB_SIZE, [1], row_slots=100), embeddings)
    for number in range(len(examples)):
        torch.testing.assert_close(
            packed.losses[packed.example_ids == number], alone.losses[alone.example_ids == number], atol=1e-4, rtol=1e-4
        )


def asking_run(**settings):
    optimisation = {"num_steps": 1, "learning_rate": 1e-3}
    return Finetune(stage="finetune", form="plain", optimisation=optimisation, tokens_per_step=1, **settings)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_that_keep_packed_prompts_apart_have_no_fault(family):
    assert packing_fault(Decoder(random_decoder(family))) is None


def test_a_decoder_that_lets_one_packed_prompt_see_another_is_refused():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    opt = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", vocab_size=VOCAB_SIZE, **shape)).eval()
    told = "row_slots is 64, but in a decoder of type 'opt' .* do not keep its prompts in one row apart; set it to null"
    with pytest.raises(TrainingError, match=told):
        refuse_packing(Decoder(opt), asking_run(row_slots=64))
    refuse_packing(Decoder(opt), asking_run(row_slots=None))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_a_projector_starts_at_the_scale_of_the_token_embeddings(family, folders):
    checkpoint = make_pair(pair(folders(family), folders("modernbert")))
    chunks = sample_chunks(checkpoint, 8, seed=1)
    tokens = torch.tensor([token for chunk in chunks for token in chunk.token_ids])
    with torch.no_grad():
        embeddings = checkpoint.projector(encode(checkpoint.encoder, encoder_batch(checkpoint.chunker, chunks)))
        ratio = embeddings.pow(2).mean().sqrt() / checkpoint.decoder.token_embeddings(tokens).pow(2).mean().sqrt()
    assert 0.8 < ratio.item() < 1.25


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_reads_the_text_of_each_chunk_whole_in_its_own_tokens(family, folders):
    checkpoint = make_pair(pair(folders("llama"), folders(family)))
    assert checkpoint.config.encoder_length == 2 * 8 + 2
    assert not any("pooler" in name for name, _ in checkpoint.encoder.named_parameters())
    chunks = sample_chunks(checkpoint, 8, seed=2)
    batch = encoder_batch(checkpoint.chunker, chunks)
    tokenizer = checkpoint.encoder_tokenizer
    for chunk, ids, mask in zip(chunks, batch.input_ids, batch.attention_mask, strict=True):
        text = checkpoint.decoder_tokenizer.decode(chunk.token_ids)
        assert ids[mask.bool()].tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_of_random_weights_reads_the_tokens_of_the_decoder(family):
    tokenizer = decoder_tokenizer("llama")
    shape = {name: value for name, value in ENCODER_SHAPE.items() if name not in ("vocab_size", "pad_token_id")}
    backbone = Backbone(architecture=family, shape={**shape, **ENCODERS[family]})
    encoder = make_encoder(backbone, tokenizer)
    assert encoder.get_input_embeddings().num_embeddings == len(tokenizer)
    assert not any("pooler" in name for name, _ in ChunkEncoder(encoder, "mean").named_parameters())
    assert torch.isfinite(encoder(input_ids=torch.full((1, 8), 9)).last_hidden_state).all()


def test_chunks_that_an_encoder_could_not_read_whole_are_refused(folders):
    with pytest.raises(TrainingError, match=r"encoder_length is 9, but chunks of 8 decoder tokens have up to \d+ of"):
        make_pair(pair(folders("llama"), folders("roberta"), encoder_length=9))


def test_positions_that_an_encoder_lacks_are_refused(folders):
    """RoBERTa with max_position_embeddings 66 and padding 1 has positions for 64 tokens."""
    make_pair(pair(folders("llama"), folders("roberta"), encoder_length=64))
    with pytest.raises(TrainingError, match=r"cannot read encoder_length = 65 tokens.*max_position_embeddings is 66"):
        make_pair(pair(folders("llama"), folders("roberta"), encoder_length=65))


def test_a_decoder_that_scales_embeddings_and_logits_is_trained_with_both(folders, tmp_path):
    config = AutoConfig.for_model("granite", **{**DECODER_SHAPE, "logits_scaling": 8.0, "embedding_multiplier": 12.0})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    decoder_tokenizer("mistral").save_pretrained(tmp_path)
    decoder = make_pair(pair(str(tmp_path), folders("roberta"))).decoder
    input_ids = torch.arange(3, 20).unsqueeze(0)
    own = decoder.backbone(input_ids=input_ids).logits
    torch.testing.assert_close(decoder.logits(decoder.read(decoder.token_embeddings(input_ids))), own)


@pytest.mark.parametrize(
    ("family", "shape", "reason"),
    [
        (
            "gpt2",
            {"max_position_embeddings": 64},
            "GPT2LMHeadModel .*: it has positions for 64 slots",
        ),
        ("bert", {}, "BertLMHeadModel cannot be the decoder: it is not causal"),
        ("bert", {"is_decoder": True}, r"BertLMHeadModel .* its logits are not its last hidden states .* cls also"),
        ("bart", {"d_model": 32}, "BartForCausalLM cannot be the decoder: it counts positions by itself"),
    ],
)
def test_a_decoder_whose_parts_are_not_all_of_it_is_refused_by_what_it_lacks(family, shape, reason, folders, tmp_path):
    config = AutoConfig.for_model(family, **{**DECODER_SHAPE, **shape})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    decoder_tokenizer("mistral").save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=reason):
        make_pair(pair(str(tmp_path), folders("roberta")))


def test_answers_end_with_the_token_that_training_ends_them_with(folders, tmp_path):
    model = random_decoder("llama")
    model.generation_config.eos_token_id = [5, 7]
    model.save_pretrained(tmp_path)
    tokenizer = decoder_tokenizer("llama")
    tokenizer.save_pretrained(tmp_path)
    decoder = Decoder(make_decoder(Backbone(pretrained=str(tmp_path)), tokenizer, 512))
    assert decoder.eos_ids == {2, 5, 7}


def test_a_tokenizer_that_could_not_be_served_is_refused_by_name(folders, monkeypatch):
    slow = SentencePieceBackend.__new__(SentencePieceBackend)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: slow)
    with pytest.raises(
        TrainingError, match=r"a SentencePieceBackend, which has no tokenizer\.json to serve; convert it"
    ):
        make_pair(pair(folders("llama"), folders("roberta")))


def test_a_tokenizer_without_an_end_is_refused(folders, tmp_path):
    random_decoder("llama").save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=byte_level(VOCAB_SIZE, [PAD, BOS, EOS])).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="no EOS token"):
        make_pair(pair(str(tmp_path), folders("roberta")))


@pytest.fixture(params=["decoder", "encoder"])
def damaged(request, folders, tmp_path):
    """Return the part that stands in a folder of its own, to be damaged, and the folders of both by part."""
    names = {"decoder": folders("llama"), "encoder": folders("bert")}
    names[request.param] = str(shutil.copytree(names[request.param], tmp_path / "model"))
    return request.param, names


def test_a_model_that_lacks_weights_is_refused_instead_of_drawn_at_random(damaged, tmp_path):
    _, names = damaged
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: weight for name, weight in load_file(file).items() if ".1." not in name}, file)
    with pytest.raises(CheckpointError, match=r"model has no weights for \d+ parameters, such as .*\.1\."):
        make_pair(pair(**names))


def test_a_model_that_is_cut_off_is_refused_by_name(damaged, tmp_path):
    _, names = damaged
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"model cannot be loaded: .*; name a folder that holds a whole"):
        make_pair(pair(**names))


def test_a_model_that_is_not_there_is_refused_by_name(damaged, tmp_path):
    _, names = damaged
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(TrainingError, match=r"tokenizer of .*model cannot be loaded: .*; name a folder"):
        make_pair(pair(**names))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(damaged):
    part, names = damaged
    tokenizer = AutoTokenizer.from_pretrained(names[part])
    tokenizer.add_tokens([f"[{number}]" for number in range(500)])
    tokenizer.save_pretrained(names[part])
    with pytest.raises(TrainingError, match=rf"the {part}'s tokenizer has a token \d+, but the {part} has embeddings"):
        make_pair(pair(**names))
