"""Floating point operations of programs whose count is known."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nl_jax.costs import Flops, count_flops
from nl_jax.models import MODEL_NAMES, LanguageModel, named_config


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


SQUARE = shaped(8, 8)
PRODUCT = 2 * 8**3


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, (shaped(3, 5), shaped(5, 7)), Flops(2 * 3 * 5 * 7, 0)),
        (jnp.matmul, (shaped(2, 4, 3, 5), shaped(2, 4, 5, 7)), Flops(8 * 2 * 3 * 5 * 7, 0)),
        (lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), (shaped(2, 9, 3, 4),) * 2, Flops(2 * 2 * 3 * 9 * 9 * 4, 0)),
        (jnp.matmul, (shaped(3, 5, dtype=jnp.int32), shaped(5, 7, dtype=jnp.int32)), Flops()),
        (lambda x: jnp.tanh(x * 2.0), (shaped(3, 4),), Flops(0, 24)),
        (lambda x: jnp.cumsum(x, axis=1), (shaped(3, 4),), Flops(0, 12)),
        (lambda x: x.sum(axis=1), (shaped(3, 4),), Flops(0, 12)),
        (lambda x: jnp.sort(x.T[::-1].reshape(2, 6).astype(jnp.bfloat16) > 0), (shaped(3, 4),), Flops()),
        (lambda x, i: x.at[i].add(1.0), (shaped(100, 4), shaped(6, dtype=jnp.int32)), Flops(0, 6 * 4)),
        (
            lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", feature_group_count=2),
            (shaped(2, 6, 9, 9), shaped(8, 3, 2, 2)),
            Flops(2 * (2 * 8 * 8 * 8) * (3 * 2 * 2), 0),
        ),
        (
            lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID"),
            (shaped(4, 4),),
            Flops(0, 4 * 4),
        ),
        (
            lambda a, b: jax.lax.linalg.triangular_solve(a, b, left_side=True),
            (shaped(3, 5, 5), shaped(3, 5, 7)),
            Flops(3 * 7 * 5**2, 0),
        ),
        (jax.jit(lambda x: jax.jit(lambda y: y @ y)(x) @ x), (SQUARE,), Flops(2 * PRODUCT, 0)),
        (lambda x: jax.lax.scan(lambda c, _: (c @ c, c + c), x, length=5), (SQUARE,), Flops(5 * PRODUCT, 5 * 64)),
        (
            lambda x: jax.lax.scan(lambda c, _: (jax.lax.fori_loop(0, 3, lambda _, y: y @ y, c), None), x, length=5),
            (SQUARE,),
            Flops(15 * PRODUCT, 0),
        ),
        (
            lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y + y, x),
            (SQUARE,),
            Flops(2 * PRODUCT, 0),
        ),
        (lambda n: jax.lax.while_loop(lambda i: i < n, lambda i: i * 2, 1), (3,), Flops()),
    ],
)
def test_known_programs(function, arguments, expected):
    assert count_flops(function, *arguments) == expected


def test_gradient_counts_twice_the_forward_pass_and_a_checkpoint_once_more():
    def loss(w, x, remat):
        def layer(x, w):
            return jnp.sin(x @ w), None

        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, w)[0].sum()

    arguments = (shaped(4, 8, 8), SQUARE)
    plain, remat = (count_flops(jax.grad(lambda w, x, r=r: loss(w, x, r)), *arguments).matrix for r in (False, True))
    assert count_flops(lambda w, x: loss(w, x, False), *arguments).matrix == 4 * PRODUCT
    assert (plain, remat) == (3 * 4 * PRODUCT, 4 * 4 * PRODUCT)


def test_custom_rules_count_what_runs():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x @ x,))
    assert count_flops(product, SQUARE).matrix == PRODUCT
    assert count_flops(jax.grad(lambda x: product(x).sum()), SQUARE).matrix == 4 * PRODUCT
    assert count_flops(jax.nn.relu, SQUARE) == Flops(0, 64)
    solved = count_flops(
        lambda x: jax.lax.custom_linear_solve(lambda y: y, x, lambda f, b: b @ b, lambda f, b: b), SQUARE
    )
    assert solved.matrix == PRODUCT


def test_shard_map_counts_all_devices():
    spec = jax.sharding.PartitionSpec("a")
    mesh = jax.sharding.AbstractMesh((4,), ("a",))
    body = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec)
    assert count_flops(body, SQUARE, SQUARE) == Flops(PRODUCT, 0)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ y, x),
        jnp.fft.fft,
        jnp.linalg.svd,
    ],
)
def test_what_cannot_be_counted_is_an_error(function):
    with pytest.raises(NotImplementedError, match=r"^\w+: "):
        count_flops(function, SQUARE)


def test_transformer_is_the_closed_form():
    batch, time, width, hidden, layers = 2, 32, 16, 24, 3
    sizes = {"width": width, "num_heads": 2, "num_layers": layers, "mlp_hidden": hidden, "context_length": time}
    config = named_config("transformer", "tiny", **sizes)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    tokens = shaped(batch, time, dtype=jnp.int32)
    parameters = layers * (4 * width**2 + 3 * width * hidden) + config.vocab_size * width
    attention = layers * 2 * time * width  # every score and every sum over values, masked or not
    expected = 2 * batch * time * (parameters + attention)
    assert count_flops(lambda m, x: m(x)[0], model, tokens).matrix == expected


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_can_be_counted(name):
    config = named_config(name, "tiny", width=16, num_heads=2, num_layers=1, mlp_hidden=8, chunk_size=8)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    short, long = (count_flops(lambda m, x: m(x)[0], model, shaped(1, time, dtype=jnp.int32)) for time in (32, 64))
    assert 2 * short.matrix <= long.matrix < 4 * short.matrix
