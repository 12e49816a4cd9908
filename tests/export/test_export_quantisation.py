"""The encoder in 8-bit integers is close to torch, and gives a chunk the same vector in any batch, on any CPU."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_helpers import SHAPE, make_encoder, make_passages, read_files
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, numpy_helper

from refrag.config import RefragConfig
from refrag.errors import CheckpointError, RefragError
from refrag.export import calibration
from refrag.export.calibration import Calibration, read_calibration
from refrag.export.graphs import export_chunk_encoder, export_projector
from refrag.export.parity import check_chunk_encoder
from refrag.export.quantisation import SCHEME, activation_scale, quantise_chunk_encoder, quantise_weight
from refrag.model.encoder import ChunkEncoder
from refrag.model.projector import Projector
from refrag.store.keys import EncoderIdentity
from refrag_client.cli.main import main

LENGTH, VOCAB = 8, 100
LIVELINESS = 5.0
NUM_LAYERS = SHAPE["num_hidden_layers"]


def draw_chunks(num_chunks: int, seed: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(3, VOCAB, (num_chunks, LENGTH))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def make_lively_encoder(family: str) -> ChunkEncoder:
    """Return an encoder whose weights are so large that every product counts; freshly drawn ones are too small."""
    encoder = make_encoder(family)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(LIVELINESS if weight.ndim == 2 else 1.0)
    return encoder


def export_integers(path: Path, family: str = "bert") -> None:
    export_chunk_encoder(make_lively_encoder(family), path, "fp32")
    quantise_chunk_encoder(path, [draw_chunks(64, seed=0)])


def encode(path: Path, chunks: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, chunks)[0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    export_integers(path)
    return path


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("passages") / "passages.txt"
    path.write_text("\n\n".join(make_passages(12)))
    return path


# Query, key and value, which one product makes in ModernBERT; the attention's output, and the network's two.
@pytest.mark.parametrize(("family", "num_products"), [("bert", 6), ("roberta", 6), ("modernbert", 4)])
def test_every_encoder_family_computes_in_integers_nearly_what_it_does_in_torch(family, num_products, tmp_path):
    export_integers(tmp_path / "model.onnx", family)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == num_products * NUM_LAYERS
    assert check_chunk_encoder(tmp_path / "model.onnx", make_lively_encoder(family), LENGTH, "int8").holds


def test_a_chunks_vector_is_the_same_alone_and_beside_any_others(bert):
    chunks = draw_chunks(40, seed=1)
    alone = [encode(bert, {name: array[row : row + 1] for name, array in chunks.items()})[0] for row in range(40)]
    # Up to the order of sums; with a scale of each batch's own they would be a hundred times as far apart.
    np.testing.assert_allclose(encode(bert, chunks), np.stack(alone), atol=1e-5)


def test_all_products_with_weights_are_of_integers_and_each_activation_becomes_them_once(bert):
    graph = onnx.load(bert).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    operators = [node.op_type for node in graph.node]
    # Query, key and value share an input.
    assert operators.count("MatMulIntegerToFloat") == 6 * NUM_LAYERS
    assert operators.count("QuantizeLinear") == 4 * NUM_LAYERS
    assert not [node for node in graph.node if node.op_type == "MatMul" and set(node.input) & set(weights)]
    assert not [tensor for tensor in weights.values() if len(tensor.dims) == 2 and is_float_product(tensor, graph)]


def test_no_two_products_that_a_cpu_may_add_in_16_bits_overflow_them(bert):
    constants = [numpy_helper.to_array(tensor) for tensor in onnx.load(bert).graph.initializer]
    weights = [array.astype(int) for array in constants if array.dtype == np.int8 and array.ndim == 2]
    assert len(weights) == 6 * NUM_LAYERS
    # Rows 0 and 1, 2 and 3 and so on are added first.
    pairs = [np.abs(weight[::2]) + np.abs(weight[1::2]) for weight in weights]
    assert max(pair.max() for pair in pairs) * 255 <= 32767


def is_float_product(tensor: onnx.TensorProto, graph: onnx.GraphProto) -> bool:
    readers = {node.op_type for node in graph.node if tensor.name in node.input}
    return tensor.data_type == TensorProto.FLOAT and bool(readers & {"MatMul", "MatMulIntegerToFloat"})


def test_a_weight_whose_scale_is_off_is_found(bert, tmp_path):
    model = onnx.load(bert)
    *_, tensor = (tensor for tensor in model.graph.initializer if tensor.name.endswith("_scales"))
    tensor.CopyFrom(numpy_helper.from_array(np.array(3 * numpy_helper.to_array(tensor), np.float32), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"chunk_encoder: largest error .* the int8 ONNX model does not compute"):
        check_chunk_encoder(tmp_path / "model.onnx", make_lively_encoder("bert"), LENGTH, "int8")


def test_a_graph_without_products_is_refused_in_words(tmp_path):
    path = tmp_path / "model.onnx"
    export_projector(Projector(16, 16), path, "fp32")
    model = onnx.load(path)
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Identity", ["chunk_vectors"], ["chunk_embeddings"]))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="no product with weights to compute in int8; export it in fp32"):
        quantise_chunk_encoder(path, [{"chunk_vectors": np.ones((2, 16), np.float32)}])


def save_graph(path: Path, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> None:
    """Save an ONNX model from x (R, 8) to y (R, 8)."""
    x, y = (onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in "xy")
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [x], [y], constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)


def test_products_in_a_row_a_shared_weight_and_an_odd_bias_are_computed_too(tmp_path):
    """The first product feeds the second, both share a weight, and the second's addend is a scalar, not a bias."""
    rng, make = np.random.default_rng(0), onnx.helper.make_node
    nodes = [
        make("MatMul", ["x", "w"], ["first"]),
        make("Add", ["first", "b"], ["biased"]),
        make("MatMul", ["biased", "w"], ["second"]),
        make("Add", ["second", "one"], ["shifted"]),
        make("Identity", ["shifted"], ["y"]),
    ]
    save_graph(tmp_path / "g.onnx", nodes, w=rng.normal(size=(8, 8)), b=rng.normal(size=8), one=np.ones(1))
    feed = {"x": rng.normal(size=(20, 8)).astype(np.float32)}
    expected = encode(tmp_path / "g.onnx", feed)
    quantise_chunk_encoder(tmp_path / "g.onnx", [feed])
    operators = [node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == 2
    assert np.abs(encode(tmp_path / "g.onnx", feed) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("num_rows", [1, 20])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_of_the_largest_products_is_exact(num_rows, sign, tmp_path):
    """With weights up to 127, CPUs without VNNI would cut off half of the sum."""
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", "w"], ["product"]), make("Identity", ["product"], ["y"])]
    save_graph(tmp_path / "g.onnx", nodes, w=sign * np.ones((8, 8)))
    feed = {"x": np.ones((num_rows, 8), np.float32)}
    quantise_chunk_encoder(tmp_path / "g.onnx", [feed])
    np.testing.assert_allclose(encode(tmp_path / "g.onnx", feed), np.full((num_rows, 8), 8.0 * sign), rtol=1e-6)


def test_a_graph_of_several_files_is_refused_in_words(bert, tmp_path):
    onnx.save(onnx.load(bert), tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    with pytest.raises(CheckpointError, match="too large for one file, as int8 needs it"):
        quantise_chunk_encoder(tmp_path / "model.onnx", [draw_chunks(4, seed=0)])


@given(arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)))
def test_a_weight_is_within_half_a_step_of_its_integer(weight):
    integers, scales = quantise_weight(weight)
    assert np.abs(integers).max() <= 64
    # And what rounding the scale itself to 24 bits costs.
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()


@given(st.floats(-100, 0), st.floats(0, 100))
def test_an_activations_scale_spans_its_range_and_has_a_step_for_zero(smallest, largest):
    scale, zero = activation_scale((smallest, largest))
    steps = (np.array([smallest, 0.0, largest]) / scale).round() + zero
    assert steps[1] == zero
    assert -1 <= steps[0] <= steps[2] <= 256


def test_the_schemes_name_stands_for_these_integers():
    """The scheme's name tells stored vectors apart: whoever changes one side of this test must change the other."""
    integers, scales = quantise_weight(np.array([[1.0, -3.0], [-0.5, 0.7], [0.2, 0.0]], np.float32))
    scale, zero = activation_scale((-1.0, 2.0))
    found = integers.tolist(), (64 * scales).tolist(), round(255 * scale.item(), 5), zero.item()
    assert found == ([[64, -64], [-32, 15], [13, 0]], [1.0, 3.0], 3.0, 85)
    assert SCHEME == "activations 0 to 255 by tensor, min-max; weights +-64 by column"


def test_the_same_chunks_with_another_scheme_have_another_digest(monkeypatch):
    chunks = Calibration([draw_chunks(2, seed=0)], [])
    before = chunks.digest
    monkeypatch.setattr(calibration, "SCHEME", "weights +-127")
    assert chunks.digest != before


def test_calibration_and_check_share_no_chunk_and_an_empty_one_is_checked(checkpoint, passages):
    read = read_calibration(passages, checkpoint, RefragConfig.load(checkpoint))
    scales = {tuple(row) for batch in read.scales for row in batch["input_ids"].tolist()}
    checks = {tuple(row) for ids, mask in read.checks for row in ids[mask.sum(1) > 0].tolist()}
    assert len(scales) > 10 < len(checks)
    assert not scales & checks
    assert all((mask.sum(1) == 0).tolist() == [False] * (len(mask) - 1) + [True] for _, mask in read.checks)


def test_too_few_passages_are_refused_with_their_number(checkpoint, tmp_path):
    (tmp_path / "few.txt").write_text("word")
    with pytest.raises(CheckpointError, match=r"few\.txt holds 1 chunks; give more passages, with 2 at least"):
        read_calibration(tmp_path / "few.txt", checkpoint, RefragConfig.load(checkpoint))


def test_passages_that_cannot_be_read_are_named(checkpoint, tmp_path):
    with pytest.raises(RefragError, match=r"cannot read passages from .*nowhere\.jsonl"):
        read_calibration(tmp_path / "nowhere.jsonl", checkpoint, RefragConfig.load(checkpoint))


def test_the_command_exports_integers_and_stores_their_vectors_apart(
    checkpoint, exported, passages, repository, capsys
):
    """Their fingerprint differs from that of float vectors, and from that of integers with other scales."""
    part = Path("preprocessing", "1", "checkpoint")
    fingerprints = {EncoderIdentity.load(exported / part).fingerprint}
    for text in (passages.read_text(), passages.read_text() + "\n\nOne passage more, with other words in it."):
        passages.write_text(text)
        options = ["--precision", "int8", "--calibration", str(passages)]
        assert main(["export", "--checkpoint", str(checkpoint), "--repository", str(repository), *options]) == 0
        assert "(allowed 5e-02)" in capsys.readouterr().out
        fingerprints.add(EncoderIdentity.load(repository / part).fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.parametrize("options", [["--precision", "int8"], ["--calibration", "passages.txt"]])
def test_integers_and_calibration_are_asked_for_together(options, checkpoint, repository, capsys):
    before = read_files(repository)
    assert main(["export", "--checkpoint", str(checkpoint), "--repository", str(repository), *options]) == 1
    assert "int8 and calibration go together" in capsys.readouterr().err
    assert read_files(repository) == before
