import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax.models import VisionTransformer
from nl_jax.models.vision_transformer import FullAttention

SIZES = {"image_size": 8, "patch_size": 4, "channels": 3, "num_classes": 5, "width": 16, "num_layers": 2}
SIZES |= {"num_heads": 2, "mlp_hidden": 24}


def test_attention_equals_a_loop():
    with jax.enable_x64(True):
        layer = FullAttention(8, 2, rngs=nnx.Rngs(0))
        x = np.random.default_rng(0).standard_normal((2, 5, 8))
        y, state = layer(jnp.asarray(x))
        assert state is None
        query, key, value, output = (
            np.asarray(part.kernel[...], np.float64) for part in (layer.query, layer.key, layer.value, layer.output)
        )
        expected = np.zeros_like(x)
        for b in range(2):
            for t in range(5):
                for head in (slice(0, 4), slice(4, 8)):
                    scores = np.array([(x[b, t] @ query)[head] @ (x[b, s] @ key)[head] / 2.0 for s in range(5)])
                    weights = np.exp(scores) / np.exp(scores).sum()
                    mixed = sum(w * (x[b, s] @ value)[head] for s, w in enumerate(weights))
                    expected[b, t] += mixed @ output[head]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_patches_are_tokens_without_an_order_but_their_positions():
    """Two patches change places, and their positions with them: nothing changes; without their positions it does."""
    model = VisionTransformer(**SIZES, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    apply = jax.jit(lambda model, images: model(images))
    logits = apply(model, images)
    assert logits.shape == (3, 5)
    swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)  # rows of patches: 0, 1 | 2, 3
    assert not np.allclose(apply(model, swapped), logits, atol=1e-3)
    model.position_embed[...] = model.position_embed[...][jnp.array([2, 3, 0, 1])]
    np.testing.assert_allclose(apply(model, swapped), logits, rtol=1e-4, atol=1e-5)


def test_learns_the_images():
    model = VisionTransformer(**SIZES, rngs=nnx.Rngs(0))
    images, labels = jax.random.normal(jax.random.key(1), (10, 8, 8, 3)), jnp.arange(10) % 5
    tx = optax.adam(3e-3)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    @jax.jit
    def train(model, state):
        def step(carry, _):
            model, state = carry
            value, gradients = jax.value_and_grad(loss)(model)
            updates, state = tx.update(gradients, state)
            return (optax.apply_updates(model, updates), state), value

        return jax.lax.scan(step, (model, state), length=60)[1]

    values = train(model, tx.init(model))
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "patch_size=3: expected a divisor of image_size=8"),
        ({"patch_size": 16}, "patch_size=16"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"num_heads": 3}, "num_heads=3: expected a divisor"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"channels": 0}, "channels=0: expected at least 1"),
    ],
)
def test_bad_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**SIZES | change, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("change", [(0, 12, 12, 0), (0, 8, 4, 0), (0, 8, 8, 7)])
def test_images_of_another_shape_are_refused(change):
    model = VisionTransformer(**SIZES, rngs=nnx.Rngs(0))
    size, channels = SIZES["image_size"], SIZES["channels"]
    message = rf"images has shape .*; expected \[batch, {size}, {size}, {channels}\]"
    for shape in ((2, *change[1:3], change[3] or channels), (2, size, size)):
        with pytest.raises(ValueError, match=message):
            model(np.zeros(shape, np.float32))
