"""Training in one call: it learns, one seed gives one run, and what is observed of a model is what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.models import named_config, observe_memories
from nl_jax.training import train_in_memory


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    from nl_jax.data import load_text_data

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"line {i % 7} says {'abc' * (i % 5)}\n" for i in range(2000)))
    return load_text_data(str(path))


SIZES = {"width": 16, "num_heads": 2, "num_layers": 1, "mlp_hidden": 16, "chunk_size": 4}


def test_a_model_learns_and_one_seed_gives_one_run(text):
    config = named_config("linear_attention", "tiny", **SIZES)
    one, two = (
        train_in_memory(config, text, steps=40, batch_size=4, seq_len=32, validation_tokens=256, optimizer="adamw")
        for _ in range(2)
    )
    assert one.losses.shape == (40,)
    assert 7 < one.losses[0] < 9  # bits of a byte that could be any
    assert one.losses[-1] < 0.7 * one.losses[0]
    assert one.bits_per_byte == pytest.approx(one.losses[-5:].mean(), rel=0.2)
    np.testing.assert_array_equal(one.losses, two.losses)


def test_observed_memories_are_those_of_the_model():
    from flax import nnx

    from nl_jax.models import LanguageModel

    model = LanguageModel(named_config("hope", "tiny", **SIZES | {"num_layers": 2}), rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (10,), 0, 256)
    seen = observe_memories(model, tokens)
    assert seen.key.shape == (2, 2, 10, 8)
    assert seen.recall.shape == (2, 2, 4, 10)
    assert seen.ends.tolist() == [4, 8, 10]
    for unit in (seen.key, seen.value, seen.query):
        np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1.0, rtol=1e-4)
    assert ((seen.alpha > 0) & (seen.alpha <= 1)).all()
    assert (seen.eta > 0).all()
    assert (np.abs(seen.recall) <= 1.0001).all()
    # what was read is known better than before, and the change grows from nothing
    before, after = seen.recall[:, :, 0, :4], seen.recall[:, :, 1, :4]
    assert (after.mean(axis=-1) > before.mean(axis=-1)).all()
    assert (seen.change > 0).all()
    _, state = model(tokens[None])
    own = [sum(jnp.sum(w**2, axis=tuple(range(3, w.ndim))) for w in group) for group in state.delta_w]
    np.testing.assert_allclose(seen.change[:, :, -1], jnp.sqrt(jnp.stack(own, -1))[:, 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("transformer", {}, "mixer 'attention': expected a model with 'self_modifying_titans'"),
        ("hope", {"cms_periods": (4,), "cms_regime": "online"}, "cms_regime='online': expected 'outer'"),
    ],
)
def test_other_models_are_not_observed(model, options, message):
    from flax import nnx

    from nl_jax.models import LanguageModel

    with pytest.raises(ValueError, match=message):
        observe_memories(LanguageModel(named_config(model, "tiny", **SIZES | options), rngs=nnx.Rngs(0)), jnp.arange(4))
