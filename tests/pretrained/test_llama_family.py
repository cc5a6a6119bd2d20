"""Models of the Llama family, read from their files, compute what a plain NumPy implementation computes."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from pretrained_cases import CASES, configuration, reference, tensors_of, write_directory

from nl_jax import InputError
from nl_jax.models import LanguageModel, named_config
from nl_jax.pretrained import Pretrained, export_pretrained, load_pretrained

IDS = np.random.default_rng(1).integers(0, 300, 13)
apply = jax.jit(lambda model, tokens, state=None: model(tokens, state))


def logits_of(pretrained, ids=IDS):
    return np.asarray(apply(pretrained.model, ids[None])[0][0])


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    config = configuration(request.param)
    tensors = tensors_of(config)
    directory = write_directory(tmp_path_factory.mktemp(request.param), config, tensors, shards=2)
    return config, tensors, load_pretrained(directory)


def test_logits_equal_a_plain_implementation(case):
    config, tensors, read = case
    expected = reference(config, tensors, IDS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(read), expected, atol=2e-4)


def test_any_split_of_a_text_gives_the_same_logits(case):
    _, _, read = case
    whole, state, parts = logits_of(read), None, []
    for part in np.split(IDS, (1, 2, 7)):
        logits, state = apply(read.model, part[None], state)
        parts.append(logits[0])
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)


def test_export_is_read_again(case, tmp_path):
    config, _, read = case
    export_pretrained(read, tmp_path / "exported")
    again = load_pretrained(tmp_path / "exported")
    np.testing.assert_array_equal(logits_of(again), logits_of(read))
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written["model_type"] == config["model_type"]
    assert again.end_tokens == read.end_tokens == (0,)
    assert again.model.config == read.model.config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types_are_read_exactly(tmp_path, dtype):
    config = configuration("qwen2")
    narrow = {name: array.astype(dtype) for name, array in tensors_of(config).items()}
    read = load_pretrained(write_directory(tmp_path, config, narrow), context_length=20)
    assert read.model.config.context_length == 20
    assert read.model.embed.embedding[...].dtype == np.float32
    expected = reference(config, narrow, IDS)
    np.testing.assert_allclose(logits_of(read), expected, atol=2e-4)
    half = load_pretrained(tmp_path, dtype="bfloat16")
    assert np.mean(np.abs(logits_of(half) - expected)) < 0.05 * np.abs(expected).max()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    config = configuration("llama")
    return load_pretrained(write_directory(tmp_path_factory.mktemp("llama"), config, tensors_of(config)))


def test_a_transformer_trained_here_is_exported_with_scaled_embeddings(tmp_path, llama):
    config = named_config("transformer", "tiny", vocab_size=300, width=16, num_heads=2, mlp_hidden=24)
    own = Pretrained(LanguageModel(config, rngs=nnx.Rngs(0)), llama.tokenizer)
    export_pretrained(own, tmp_path / "own")
    np.testing.assert_allclose(logits_of(load_pretrained(tmp_path / "own")), logits_of(own), atol=1e-5)


def test_what_llama_cannot_compute_is_not_exported(tmp_path, llama):
    sizes = {"vocab_size": 300, "width": 16, "num_heads": 2, "mlp_hidden": 24}
    for name, problem in (("hope", "mixer="), ("hope_attention", "cms_periods="), ("transformer_conv", "convolution")):
        model = LanguageModel(named_config(name, "tiny", **sizes), rngs=nnx.Rngs(0))
        with pytest.raises(InputError, match=problem):
            export_pretrained(Pretrained(model, llama.tokenizer), tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        export_pretrained(llama, tmp_path / "full")


def test_a_long_context_is_the_default_up_to_a_limit(tmp_path):
    config = configuration("llama") | {"max_position_embeddings": 131_072}
    read = load_pretrained(write_directory(tmp_path, config, tensors_of(config)))
    assert read.model.config.context_length == 2048
    assert load_pretrained(tmp_path, context_length=7).model.config.context_length == 7
