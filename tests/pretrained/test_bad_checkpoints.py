"""Files that cannot be read end in one line that names the file and the tensor or field."""

import json

import numpy as np
import pytest
from pretrained_cases import configuration, tensors_of, tokenizer, write_directory, write_gguf

from nl_jax import InputError
from nl_jax.pretrained import Pretrained, load_pretrained
from nl_jax.pretrained.hf_config import from_hf

Q = "model.layers.1.self_attn.q_proj.weight"


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load_pretrained(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change(changes):
    """What to do to the tensors of a directory before they are written."""

    def write(directory):
        config = configuration("llama")
        tensors = tensors_of(config)
        changes(tensors)
        return write_directory(directory, config, tensors)

    return write


def configured(**fields):
    return lambda directory: write_directory(
        directory, configuration("llama") | fields, tensors_of(configuration("llama"))
    )


def shard_missing(directory):
    config = configuration("llama")
    write_directory(directory, config, tensors_of(config), shards=2)
    (directory / "model-00002-of-00002.safetensors").unlink()


def cut_off(directory):
    configured()(directory)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def not_in_shard(directory):
    config = configuration("llama")
    write_directory(directory, config, tensors_of(config), shards=2)
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"][Q] = first if index["weight_map"][Q] == second else second
    file.write_text(json.dumps(index))


def larger_tokenizer(directory):
    configured()(directory)
    own = tokenizer()
    own.add_tokens([f"<{i}>" for i in range(50)])
    own.save(str(directory / "tokenizer.json"))


DIRECTORIES = {
    "another architecture": (configured(model_type="gpt2"), "config.json: model_type is 'gpt2'; expected one of llama"),
    "no size": (configured(hidden_size=None), "config.json: hidden_size is None; expected an integer"),
    "another activation": (configured(hidden_act="gelu"), "config.json: hidden_act is 'gelu'; expected 'silu'"),
    "yarn": (configured(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_scaling of type 'yarn'"),
    "scaling without factor": (
        configured(rope_scaling={"type": "linear"}),
        "rope_scaling: type 'linear' needs 'factor'",
    ),
    "quantised": (configured(quantization_config={"quant_method": "gptq"}), "weights quantised by 'gptq'"),
    "heads": (configured(num_key_value_heads=3), "num_kv_heads=3: expected a divisor of num_heads=4"),
    "missing tensor": (change(lambda t: t.pop(Q)), f"tensor {Q!r} is missing"),
    "wrong shape": (
        change(lambda t: t.update({Q: t[Q][1:]})),
        f"model.safetensors: tensor {Q!r} has shape (31, 24); expected (32, 24)",
    ),
    "unknown tensor": (
        change(lambda t: t.update({Q.replace("weight", "bias"): np.zeros(32, np.float32)})),
        f"tensor '{Q[:-6]}bias': the architecture of its configuration has no such tensor",
    ),
    "integers": (
        change(lambda t: t.update({Q: np.zeros((32, 24), np.int8)})),
        f"model.safetensors: tensor {Q!r} is of type I8; expected one of F64, F32",
    ),
    "missing shard": (shard_missing, "model-00002-of-00002.safetensors: no such file; the index names it for tensor"),
    "not in its shard": (not_in_shard, f"tensor {Q!r} is not in this file, where the index has it"),
    "cut off": (cut_off, "model.safetensors: damaged or cut off"),
    "tokenizer": (larger_tokenizer, "'model.embed_tokens.weight' has 300 rows, but tokenizer"),
    "no configuration": (lambda d: d.mkdir(), "config.json: cannot be read (No such file or directory)"),
    "no tokenizer": (lambda d: (configured()(d), (d / "tokenizer.json").unlink()), "expected a Hugging Face tokenizer"),
    "no weights": (lambda d: (configured()(d), (d / "model.safetensors").unlink()), "no weights; expected model.safet"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_bad_directories(tmp_path, name):
    write, expected = DIRECTORIES[name]
    write(tmp_path / "model")
    message = refusal(tmp_path / "model")
    assert expected in message
    assert str(tmp_path / "model") in message


def _gguf(path, **options):
    config = configuration("llama") | options.pop("config", {})
    return write_gguf(path, config, tensors_of(config), **options)


def _cut(path, keep):
    _gguf(path)
    path.write_bytes(path.read_bytes()[:keep])


GGUFS = {
    "another architecture": (lambda p: _gguf(p, config={"model_type": "gemma"}), "general.architecture is 'gemma'"),
    "another tokenizer": (lambda p: _gguf(p, pre="deepseek"), "tokenizer.ggml.pre is 'deepseek'"),
    "cut off in a tensor": (lambda p: _cut(p, -100), "tensor 'blk.1.ffn_down.weight' ends at byte"),
    "cut off in the header": (lambda p: _cut(p, 2000), "damaged or cut off at byte"),
    "cut off at once": (lambda p: _cut(p, 6), "damaged or cut off at byte"),
    "empty": (lambda p: p.touch(), "not a GGUF file"),
    "another format": (lambda p: p.write_bytes(b"PK\3\4 and more"), "not a GGUF file"),
    "version 1": (
        lambda p: p.write_bytes(b"GGUF" + bytes([1, 0, 0, 0]) + bytes(40)),
        "not a GGUF file of version 2 or 3",
    ),
    "unknown type": (lambda p: (_gguf(p), _retype(p, 250)), "'token_embd.weight' is of the unknown type 250"),
    "integers": (lambda p: (_gguf(p), _retype(p, 26)), "'token_embd.weight' is of type I32; expected F32"),
}


def _retype(path, kind):
    """Changes the type of the first tensor in the header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
    content[at : at + 4] = kind.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("name", GGUFS)
def test_bad_gguf_files(tmp_path, name):
    write, expected = GGUFS[name]
    path = tmp_path / "model.gguf"
    write(path)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_other_refusals(tmp_path):
    assert "no such file or directory" in refusal(tmp_path / "none")
    configured()(tmp_path / "model")
    assert "context_length=0" in refusal(tmp_path / "model", context_length=0)
    assert "dtype='float64'" in refusal(tmp_path / "model", dtype="float64")
    read = load_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="no chat template"):
        read.chat([])
    refuses = Pretrained(read.model, read.tokenizer, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="chat template: roles must alternate"):
        refuses.chat([])
    with pytest.raises(InputError, match="expected a role and a content"):
        refuses.chat([{"role": "user"}])
    with pytest.raises(InputError, match="chat template: Expected an expression"):
        Pretrained(read.model, read.tokenizer, "{% if %}").chat([])


def test_a_value_that_is_null_is_the_default(tmp_path):
    null = dict.fromkeys(("max_position_embeddings", "rms_norm_eps", "rope_theta", "num_key_value_heads", "head_dim"))
    given = {**configuration("llama"), "num_key_value_heads": configuration("llama")["num_attention_heads"]}
    left_out = {name: value for name, value in given.items() if name not in null}
    assert from_hf(left_out | null, "config.json") == from_hf(left_out, "config.json")
