"""Which program answers causal attention. cuDNN's own is not here; what it is asked for is answered by XLA instead."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.ops import blockwise_attention, causal_attention

H100 = SimpleNamespace(platform="gpu", compute_capability="9.0")
OTHERS = [
    SimpleNamespace(platform="cpu"),
    SimpleNamespace(platform="gpu", compute_capability="7.5"),  # no fused attention
    SimpleNamespace(platform="gpu", compute_capability="gfx942"),  # another maker's
]


@pytest.fixture
def fused(monkeypatch):
    """The calls that go to cuDNN, each as its named arguments."""
    calls = []
    answer = jax.nn.dot_product_attention

    def record(*arrays, implementation, **options):
        assert implementation == "cudnn"
        calls.append(options)
        return answer(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    return calls


def arrays(time=20, keys=None, head_dim=16, dtype=jnp.bfloat16):
    shapes = [(2, length, 3, head_dim) for length in (time, keys or time, keys or time)]
    return [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]


def use(monkeypatch, device):
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(("window", "near"), [(None, None), (20, None), (7, (6, 0)), (1, (0, 0))])
def test_a_gpu_answers_whole_texts_in_one_kernel(window, near, fused, monkeypatch):
    use(monkeypatch, H100)
    given = arrays()
    y = causal_attention(*given, window=window)
    assert fused == [{"is_causal": True, "local_window_size": near}]
    wide = [x.astype(jnp.float32) for x in given]
    np.testing.assert_allclose(y.astype(jnp.float32), blockwise_attention(*wide, window=window), atol=0.03)


@pytest.mark.parametrize(
    "given",
    [{"keys": 30}, {"head_dim": 12}, {"head_dim": 136}, {"dtype": jnp.float32}],
    ids=lambda given: next(iter(given)),
)
def test_what_cudnn_does_not_take_is_answered_in_blocks(given, fused, monkeypatch):
    use(monkeypatch, H100)
    given = arrays(**given)
    np.testing.assert_array_equal(causal_attention(*given, window=9), blockwise_attention(*given, window=9))
    assert fused == []


def test_a_context_before_the_text_is_answered_in_blocks(fused, monkeypatch):
    use(monkeypatch, H100)
    options = {"window": 9, "empty": jnp.asarray(4)}
    np.testing.assert_array_equal(causal_attention(*arrays(), **options), blockwise_attention(*arrays(), **options))
    assert fused == []


@pytest.mark.parametrize("device", OTHERS, ids=str)
def test_other_devices_answer_in_blocks(device, fused, monkeypatch):
    use(monkeypatch, device)
    np.testing.assert_array_equal(causal_attention(*arrays()), blockwise_attention(*arrays()))
    assert fused == []
