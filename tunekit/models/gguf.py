"""GGUF files, llama.cpp's format, as Hugging Face folders: config, float tensors, tokenizer.

Quantised tensors become the floats that llama.cpp computes with. Reads through the ``gguf``
package 0.19: ``pip install tunekit[gguf]``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tunekit.errors import ModelError, did_you_mean
from tunekit.models.gguf_tokenizer import tokenizer_files

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

_ROPE_FREQUENCIES = "rope_freqs.weight"
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_LENGTH, _LLAMA3_FACTORS = 8192, (8.0, 32.0)


@dataclass(frozen=True, eq=False)
class GGUF:
    """What a GGUF file says, in Hugging Face's words."""

    path: Path
    config: Mapping[str, Any]
    """As in a config.json."""
    metadata: Mapping[str, Any]
    """The file's own keys and values."""
    _tensors: Mapping[str, Any]
    """The package's tensors by Hugging Face name, still packed."""

    @property
    def names(self) -> tuple[str, ...]:
        """Hugging Face's names of the tensors, in the file's order."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Returns one tensor, unpacked to float32, as a Hugging Face checkpoint holds it.

        Raises:
            ModelError: there is none of that name.
        """
        from gguf.quants import dequantize

        if name not in self._tensors:
            raise ModelError(
                f"{self.path} holds no tensor '{name}'.{did_you_mean(name, self._tensors)}"
            )
        packed = self._tensors[name]
        value = np.asarray(dequantize(packed.data, packed.tensor_type), np.float32)
        heads = self._interleaved_heads(name)
        return value if heads is None else _halves(value, heads)

    def _interleaved_heads(self, name: str) -> int | None:
        """The number of heads whose rows llama.cpp has reordered, if it has."""
        if self.config["model_type"] != "llama":
            return None
        module = name.rsplit(".", 2)[-2]
        keys = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        return self.config[keys[module]] if module in keys else None


def read_gguf(path: Path) -> GGUF:
    """Returns the contents of a file of a Llama (also Mistral, SmolLM) or a Qwen2; lazily.

    Raises:
        ModelError: it is no GGUF file, of another architecture, or has tensors of unknown use.
    """
    try:
        reader_class = _reader_class()
    except ImportError as error:
        raise ModelError(
            f"{path} needs the gguf package to be read: pip install 'tunekit[gguf]'."
        ) from error
    if not path.is_file():
        raise ModelError(f"there is no GGUF file at {path}.")
    try:
        reader = reader_class(path)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as GGUF ({error}); fetch it again.") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    kind = metadata.get("general.architecture", "")
    if kind not in _ARCHITECTURES:
        raise ModelError(
            f"{path} holds a '{kind}'; of GGUF files tunekit reads {', '.join(_ARCHITECTURES)}."
            f"{did_you_mean(kind, _ARCHITECTURES)}"
        )
    packed = {tensor.name: tensor for tensor in reader.tensors}
    frequencies = packed.pop(_ROPE_FREQUENCIES, None)
    tensors = {_name(name, path): tensor for name, tensor in packed.items()}
    config = _config(kind, metadata, tensors, path)
    if frequencies is not None:
        config["rope_scaling"] = _llama3_rope(np.asarray(frequencies.data), config, path)
    return GGUF(path, config, metadata, tensors)


def _reader_class() -> type[Any]:
    """The package's reader, in a third of its time for a file with a vocabulary of 49,000.

    It slices its memory map for every token, and slices of ``np.memmap`` are slow to make.
    """
    from gguf.gguf_reader import GGUFReader

    class Reader(GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = np.asarray(mapped)

    return Reader


def write_folder(
    file: GGUF,
    folder: Path,
    *,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    weights: bool = True,
) -> None:
    """Writes a Hugging Face folder of `file`: model, config and tokenizer.

    Args:
        file: what is written.
        folder: made where missing.
        dtype: of the tensors; "float32" loses nothing of what the file says, "float16" little.
        tokenizer: a tokenizer.json to copy; `None` rebuilds it from the file's vocabulary.
        weights: whether the tensors are written.

    Raises:
        ModelError: the tokenizer is of a kind that cannot be rebuilt.
    """
    files = tokenizer_files(file.metadata, str(file.path), rebuild=tokenizer is None)
    if tokenizer is not None:
        files["tokenizer.json"] = json.loads(tokenizer.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    files["config.json"] = {**file.config, "torch_dtype": dtype}
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text, encoding="utf-8")
    if not weights:
        return
    tensors = {name: np.ascontiguousarray(file.tensor(name), dtype) for name in file.names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def as_folder(path: Path, *, weights: bool = True) -> Iterator[Path]:
    """A Hugging Face folder with the contents of a GGUF file, gone after the block.

    A tokenizer.json beside the file stands before the one that is rebuilt from it. Without
    `weights` it holds no tensors.

    Example:
        >>> with as_folder(Path("SmolLM2-135M-Instruct.Q4_1.gguf")) as folder:
        ...     backbone = load_backbone(folder, BackboneSpec())
    """
    with tempfile.TemporaryDirectory(prefix="tunekit-gguf-") as folder:
        own = path.with_name("tokenizer.json")
        tokenizer = own if own.is_file() else None
        write_folder(read_gguf(path), Path(folder), tokenizer=tokenizer, weights=weights)
        yield Path(folder)


def _name(name: str, path: Path) -> str:
    """Hugging Face's name of a tensor, such as "blk.0.attn_q.weight"."""
    module, _, suffix = name.rpartition(".")
    if module in _TENSORS:
        return f"{_TENSORS[module]}.{suffix}"
    block, _, index_and_module = module.partition(".")
    index, _, inner = index_and_module.partition(".")
    if block != "blk" or inner not in _BLOCK_TENSORS:
        known = [*_TENSORS, *(f"blk.{index}.{inner}" for inner in _BLOCK_TENSORS)]
        raise ModelError(
            f"{path}: nothing is known of tensor '{name}'.{did_you_mean(module, known)} Models "
            "with experts or with norms inside the attention are not read from GGUF."
        )
    return f"model.layers.{index}.{_BLOCK_TENSORS[inner]}.{suffix}"


def _config(
    kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{key}", default)
        if value is None:
            raise ModelError(f"{path} lacks the key '{kind}.{key}'; convert the model again.")
        # 1e-5 is stored as the nearest float32, 9.9999997e-6.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    width, heads = get("embedding_length"), get("attention.head_count")
    default_theta = 1e4 if kind == "llama" else 1e6
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"{path}: rotary embeddings scaled as '{scaling}' are not read from GGUF.")
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", width // heads),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", default_theta),
        "rope_scaling": None,
        "vocab_size": int(tensors["model.embed_tokens.weight"].shape[1]),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "attention_bias": any(name.endswith("q_proj.bias") for name in tensors),
        "mlp_bias": any(name.endswith("up_proj.bias") for name in tensors),
        "hidden_act": "silu",
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key [heads K, ...] with each rotary pair's halves apart.

    llama.cpp turns neighbouring rows together, (0, 1), (2, 3)…, and so has them interleaved;
    Hugging Face turns row i with row i + K/2.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _llama3_rope(
    divisors: np.ndarray, config: Mapping[str, Any], path: Path
) -> dict[str, Any] | None:
    """The scaling of Llama 3.1 and later, of which a file keeps each frequency's divisor [K/2].

    The equation is that of ``modeling_rope_utils._compute_llama3_parameters`` in transformers.
    """
    half = len(divisors)
    frequency = config["rope_theta"] ** (-np.arange(half) / half)
    rotations = _LLAMA3_LENGTH * frequency / (2 * np.pi)
    low, high = _LLAMA3_ROPE.values()
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    for factor in _LLAMA3_FACTORS:
        if np.allclose(divisors, 1 / ((1 - kept) / factor + kept), rtol=1e-4):
            scaled = {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}
            return {**scaled, "original_max_position_embeddings": _LLAMA3_LENGTH}
    raise ModelError(
        f"{path}: the divisors of its rotary frequencies are not those of a Llama 3 scaled by "
        f"{' or '.join(f'{factor:g}' for factor in _LLAMA3_FACTORS)}; load the Hugging Face folder."
    )
