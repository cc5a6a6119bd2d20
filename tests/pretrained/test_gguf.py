"""GGUF files that the package ``gguf`` has written are read as it reads them, tokenizer and all."""

import jax
import numpy as np
import pytest
from pretrained_cases import TEXT, configuration, reference, tensors_of, tokenizer, write_gguf
from tokenizers import pre_tokenizers

from nl_jax.pretrained import load_pretrained

gguf = pytest.importorskip("gguf")
IDS = np.random.default_rng(1).integers(0, 300, 13)
apply = jax.jit(lambda model, tokens: model(tokens)[0])
# sizes of which a block of 32 values is a part
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}


def rounded(tensors, kind):
    """Matrices as they come back from a type."""
    own = gguf.GGMLQuantizationType[kind]
    return {
        name: gguf.quants.dequantize(gguf.quants.quantize(array, own), own) if array.ndim > 1 else array
        for name, array in tensors.items()
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_every_type_is_read(tmp_path, kind):
    config = configuration("llama") | SIZES
    tensors = tensors_of(config)
    read = load_pretrained(write_gguf(tmp_path / "model.gguf", config, tensors, kind))
    expected = reference(config, rounded(tensors, kind), IDS)
    np.testing.assert_allclose(apply(read.model, IDS[None])[0], expected, atol=1e-3)


@pytest.mark.parametrize("case", ["qwen2", "qwen3", "llama_linear"])
def test_architectures(tmp_path, case):
    config = configuration(case)
    fields = [("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 4.0)]
    tensors = tensors_of(config)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, fields=fields if case == "llama_linear" else ())
    np.testing.assert_allclose(
        apply(load_pretrained(path).model, IDS[None])[0], reference(config, tensors, IDS), atol=2e-4
    )


def test_factors_of_the_frequencies(tmp_path):
    """Llama 3.1's scaling is a tensor in a GGUF file."""
    factors = np.array([1.0, 2.5, 8.0], np.float32)
    config = configuration("llama3") | {"rope_scaling": {"factors": factors}}
    tensors = tensors_of(config)
    read = load_pretrained(write_gguf(tmp_path / "model.gguf", config, tensors | {"rope_freqs.weight": factors}))
    np.testing.assert_allclose(apply(read.model, IDS[None])[0], reference(config, tensors, IDS), atol=2e-4)


def test_tokenizer_and_chat_come_from_the_file(tmp_path):
    config = configuration("llama")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    read = load_pretrained(write_gguf(tmp_path / "model.gguf", config, tensors_of(config), template=template))
    own = tokenizer([pre_tokenizers.Digits(individual_digits=True)])
    ids = read.encode(TEXT)
    assert ids == own.encode(TEXT).ids
    assert read.tokenizer.decode(np.asarray(ids)) == TEXT
    chat = read.chat([{"role": "user", "content": "hi"}])
    assert chat == "user: hi<|im_end|>"
    assert read.encode(chat, marked=True)[-1] == 1 == read.end_tokens[0]
    assert read.encode(chat)[-1] != 1


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("smollm", "a 12b", ["a", "Ġ", "1", "2", "b"]),
        ("gpt-2", "a 12b", ["a", "Ġ12", "b"]),
        ("llama-bpe", "a 1234b\n\nc", ["a", "Ġ", "123", "4", "b", "ĊĊ", "c"]),
        ("qwen2", "a 12b", ["a", "Ġ", "1", "2", "b"]),
    ],
)
def test_texts_are_cut_as_the_file_says(pre, text, words):
    from nl_jax.pretrained.gguf_tokenizer import PRE_TOKENIZERS

    cut = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre]()).pre_tokenize_str(text)
    assert [word for word, _ in cut] == words
