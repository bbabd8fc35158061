"""GGUF files say what the Hugging Face folder they were made of says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFWriter, quants
from gguf import GGMLQuantizationType as Kind

from tunekit.errors import ModelError
from tunekit.models.gguf import as_folder, read_gguf, write_folder
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.torch_weights import TorchWeights

WIDTH, HEADS, KEY_VALUE_HEADS, VOCABULARY = 64, 4, 2, 8
HEAD = WIDTH // HEADS
TOKENS = ["<s>", "</s>", "a", "b", "ab", "Ġ", "c", "d"]


def rows(count: int, columns: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, columns)).astype(np.float32)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key, row by row."""
    half = weight.shape[0] // heads // 2
    order = [h * 2 * half + i + j * half for h in range(heads) for i in range(half) for j in (0, 1)]
    return weight[order]


def write(path: Path, *, kind: str = "llama", pack: Kind = Kind.F32, **other) -> Path:
    writer = GGUFWriter(path, kind)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(other.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    tensors = {
        "token_embd.weight": rows(VOCABULARY),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_q.weight": interleaved(rows(WIDTH), HEADS),
        "blk.0.attn_k.weight": interleaved(rows(KEY_VALUE_HEADS * HEAD), KEY_VALUE_HEADS),
        "blk.0.ffn_down.weight": rows(WIDTH, 96),
        **other.get("tensors", {}),
    }
    for name, value in tensors.items():
        packed = value if value.ndim == 1 or value.shape[-1] % 32 else quants.quantize(value, pack)
        raw = None if packed is value else pack
        writer.add_tensor(name, packed, raw_dtype=raw)
    for name, (packed, raw) in other.get("raw", {}).items():
        writer.add_tensor(name, packed, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_config_is_in_hugging_faces_words(tmp_path):
    config = read_gguf(write(tmp_path / "m.gguf")).config
    assert config["model_type"] == "llama"
    assert (config["hidden_size"], config["num_key_value_heads"], config["head_dim"]) == (64, 2, 16)
    assert config["rms_norm_eps"] == 1e-5  # stored as the nearest float32
    assert config["rope_theta"] == 1e5
    assert config["vocab_size"] == VOCABULARY
    assert config["tie_word_embeddings"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_rows_of_query_and_key_are_in_hugging_faces_order(tmp_path):
    file = read_gguf(write(tmp_path / "m.gguf"))
    query = file.tensor("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(query, rows(WIDTH))
    key = file.tensor("model.layers.0.self_attn.k_proj.weight")
    np.testing.assert_array_equal(key, rows(KEY_VALUE_HEADS * HEAD))


def test_rows_of_a_qwen2_stay_as_they_are_and_its_biases_are_read(tmp_path):
    bias = rows(1)[0]
    path = write(tmp_path / "m.gguf", kind="qwen2", tensors={"blk.0.attn_q.bias": bias})
    file = read_gguf(path)
    query = file.tensor("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(query, interleaved(rows(WIDTH), HEADS))
    np.testing.assert_array_equal(file.tensor("model.layers.0.self_attn.q_proj.bias"), bias)
    assert file.config["attention_bias"]


# Half a step of each packing, of values up to about 3; of those with a sign bit a whole step, at
# the end that has one level less.
@pytest.mark.parametrize(
    ("pack", "error"),
    [
        (Kind.F16, 2e-3),
        (Kind.BF16, 2e-2),
        (Kind.Q8_0, 2e-2),
        (Kind.Q5_1, 0.1),
        (Kind.Q5_0, 0.25),
        (Kind.Q4_1, 0.2),
        (Kind.Q4_0, 0.5),
    ],
)
def test_packed_tensors_are_read_as_floats(tmp_path, pack, error):
    file = read_gguf(write(tmp_path / "m.gguf", pack=pack))
    down = file.tensor("model.layers.0.mlp.down_proj.weight")
    assert down.dtype == np.float32
    difference = np.abs(down - rows(WIDTH, 96)).max()
    assert 0 < difference < error


def blocks(kind: Kind, count: int) -> np.ndarray:
    """Blocks of 256 random numbers each, uint8 [count, bytes], with scales about 1 / 100."""
    _, size = GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)
    scales = np.linspace(0.01, 0.02, 2 * count, dtype=np.float16).view(np.uint8).reshape(count, 4)
    first = kind in (Kind.Q4_K, Kind.Q5_K)
    width = 4 if first or kind == Kind.Q2_K else 2
    packed[:, slice(width) if first else slice(-width, None)] = scales[:, :width]
    return packed


def of_q4_k(block: np.ndarray) -> list[float]:
    """Eight runs of 32 numbers in 4 bits, each with a scale and a minimum in 6 bits."""
    scale, minimum = (float(x) for x in block[:4].view(np.float16))
    packed, nibbles = [int(x) for x in block[4:16]], block[16:].reshape(4, 32)
    numbers = []
    for run in range(8):
        if run < 4:
            step, low = packed[run] & 63, packed[run + 4] & 63
        else:
            step = packed[run + 4] & 15 | packed[run - 4] >> 6 << 4
            low = packed[run + 4] >> 4 | packed[run] >> 6 << 4
        levels = nibbles[run // 2] >> 4 * (run % 2) & 15
        numbers += [scale * step * int(level) - minimum * low for level in levels]
    return numbers


def of_q6_k(block: np.ndarray) -> list[float]:
    """Runs of 16 numbers in 6 bits, 4 and 2 of them apart, each with a scale in 8 bits."""
    low, high = block[:128].reshape(2, 64), block[128:192].reshape(2, 32)
    steps, scale = block[192:208].view(np.int8), float(block[208:].view(np.float16)[0])
    numbers = []
    for index in range(256):
        half, quarter, place = index // 128, index % 128 // 32, index % 32
        nibble = int(low[half, quarter % 2 * 32 + place]) >> 4 * (quarter // 2) & 15
        level = nibble | (int(high[half, place]) >> 2 * quarter & 3) << 4
        numbers.append(scale * int(steps[index // 16]) * (level - 32))
    return numbers


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_tensors_packed_in_blocks_of_256_are_read_as_floats(tmp_path, kind):
    packed = blocks(kind, 8)
    path = write(tmp_path / "m.gguf", raw={"blk.0.ffn_up.weight": (packed.reshape(4, -1), kind)})
    up = read_gguf(path).tensor("model.layers.0.mlp.up_proj.weight")
    assert (up.shape, up.dtype) == ((4, 512), np.float32)
    np.testing.assert_array_equal(up, quants.dequantize(packed.reshape(4, -1), kind))
    assert up.std() > 0.1
    if formula := {Kind.Q4_K: of_q4_k, Kind.Q6_K: of_q6_k}.get(kind):
        wanted = [formula(block) for block in packed]
        np.testing.assert_allclose(up.reshape(8, 256), wanted, atol=1e-5)


def test_the_folder_holds_model_config_and_tokenizer(tmp_path):
    from tokenizers import Tokenizer

    with as_folder(write(tmp_path / "m.gguf")) as folder:
        weights = TorchWeights(folder)
        np.testing.assert_array_equal(weights.take("model.embed_tokens.weight"), rows(VOCABULARY))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert (config["eos_token"], config["chat_template"]) == ("</s>", "{{ messages }}")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert tokenizer.encode("ab</s>c").ids == [4, 1, 6]
    assert not folder.exists()


def whole_model() -> dict[str, np.ndarray]:
    """The tensors that `write` leaves out."""
    norms = {f"blk.0.{name}_norm.weight": np.ones(WIDTH, np.float32) for name in ("attn", "ffn")}
    return {
        **norms,
        "blk.0.attn_v.weight": rows(KEY_VALUE_HEADS * HEAD),
        "blk.0.attn_output.weight": rows(WIDTH),
        "blk.0.ffn_gate.weight": rows(96),
        "blk.0.ffn_up.weight": rows(96),
    }


def test_a_model_brings_the_tokenizer_of_its_file_and_one_beside_it_stands_before_it(tmp_path):
    path = write(tmp_path / "m.gguf", tensors=whole_model())
    backbone = load_backbone(path, BackboneSpec())
    tokenizer = backbone.text_tokenizer()
    assert backbone.source == str(path) and backbone.language_head is not None
    assert tokenizer.encode("ab</s>c").ids.tolist() == [4, 1, 6]
    assert (tokenizer.bos_id, tokenizer.stop_ids) == (0, {1})
    assert tokenizer.chat_template == "{{ messages }}"
    unknown = write(tmp_path / "unknown.gguf", tensors=whole_model(), pre="qwen3")
    with pytest.raises(ModelError, match="with splitting 'qwen3'.*tokenizer.json beside the file"):
        load_backbone(unknown, BackboneSpec())
    own = json.loads(tokenizer.files["tokenizer.json"])
    own["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(own))
    reader = load_backbone(unknown, BackboneSpec()).text_tokenizer()
    assert reader.encode("ab").ids.tolist() == [2, 3]


def test_llama_3s_scaled_frequencies_are_recognised(tmp_path):
    half = HEAD // 2
    wavelength = 2 * np.pi * 1e5 ** (np.arange(half) / half)
    share = np.clip((8192 / wavelength - 1) / 3, 0, 1)
    divisors = (1 / ((1 - share) / 32 + share)).astype(np.float32)
    path = write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors})
    rope = read_gguf(path).config["rope_scaling"]
    assert (rope["rope_type"], rope["factor"]) == ("llama3", 32.0)
    odd = write(tmp_path / "odd.gguf", tensors={"rope_freqs.weight": divisors + 1})
    with pytest.raises(ModelError, match="not those of a Llama 3 scaled by 8 or 32"):
        read_gguf(odd)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds a 'lama'.*Did you mean 'llama'"):
        read_gguf(write(tmp_path / "m.gguf", kind="lama"))


def test_a_tensor_of_unknown_use_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", tensors={"blk.0.ffn_gate_exps.weight": rows(4)})
    with pytest.raises(ModelError, match=re.escape("'blk.0.ffn_gate_exps.weight'")):
        read_gguf(path)


def test_what_is_no_gguf_file_is_said_so(tmp_path):
    with pytest.raises(ModelError, match="no GGUF file at"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        read_gguf(tmp_path / "page.gguf")


def test_a_missing_tensor_is_named_with_its_neighbours(tmp_path):
    file = read_gguf(write(tmp_path / "m.gguf"))
    with pytest.raises(ModelError, match="Did you mean 'model.norm.weight'"):
        file.tensor("model.norm.weigth")


def test_an_unknown_tokenizer_is_asked_for(tmp_path):
    file = read_gguf(write(tmp_path / "m.gguf", pre="qwen3"))
    with pytest.raises(ModelError, match="Did you mean 'qwen2'.*own tokenizer.json"):
        write_folder(file, tmp_path / "folder")
    own = tmp_path / "own.json"
    own.write_text('{"version": "1.0"}')
    write_folder(file, tmp_path / "folder", tokenizer=own)
    assert json.loads((tmp_path / "folder" / "tokenizer.json").read_text()) == {"version": "1.0"}
