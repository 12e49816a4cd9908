"""A GGUF file in 8 bits has the weights and the metadata of the one that it was made from."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from perf.llama_cpp import write_q8_0


def write(path, matrix, norm):
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "ü", "c"])
    writer.add_bos_token_id(2)
    kind = GGMLQuantizationType.Q4_1
    writer.add_tensor("matrix", quants.quantize(matrix, kind), raw_dtype=kind)
    writer.add_tensor("norm", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def test_all_but_the_kind_of_matrices_is_copied(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / "q4.gguf", rng.normal(size=(8, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32))
    write_q8_0(tmp_path / "q4.gguf", tmp_path / "q8.gguf")
    (before, coarse), (after, fine) = read(tmp_path / "q4.gguf"), read(tmp_path / "q8.gguf")
    assert after == before
    assert after["tokenizer.ggml.tokens"] == ["a", "ü", "c"]
    assert fine["matrix"].tensor_type == GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(fine["norm"].data, coarse["norm"].data)
    weights = [quants.dequantize(tensors["matrix"].data, tensors["matrix"].tensor_type) for tensors in (coarse, fine)]
    assert weights[0].shape == weights[1].shape == (8, 64)
    # Half a step of 1/127 of the largest of 32, whose scale is in half precision.
    np.testing.assert_allclose(weights[1], weights[0], atol=0.005 * np.abs(weights[0]).max())
