"""Gradient accumulation: microbatches give the step of the whole batch, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.parallel import parse_mesh
from nl_jax.parallel.mesh import AXES
from nl_jax.parallel.microbatches import split_batch
from nl_jax.training import compile_step, init_state, train_step

SIZES = {"vocab_size": 11, "width": 8, "num_layers": 1, "num_heads": 2, "mlp_hidden": 8, "chunk_size": 4}
slow = pytest.mark.slow


def setup(batch_size=8, time=16, mask=False, **options):
    """(optimizer, state, batch). With a mask the first microbatch of four has no targets."""
    model = LanguageModel(LanguageModelConfig(**{**SIZES, "context_length": time, **options}), rngs=nnx.Rngs(0))
    optimizer = optax.adam(1e-2)
    tokens = jax.random.randint(jax.random.key(1), (batch_size, time + 1), 0, SIZES["vocab_size"])
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    if mask:
        kept = jax.random.bernoulli(jax.random.key(2), 0.6, (batch_size, time)).astype(jnp.float32)
        batch["mask"] = kept.at[: batch_size // 4].set(0.0)
    return optimizer, init_state(lambda: model, optimizer), batch


@pytest.mark.parametrize("mask", [pytest.param(False, marks=slow), True])
@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "attention"},
        pytest.param({"mixer": "self_modifying_titans"}, marks=slow),
        pytest.param({"mixer": "delta_net", "cms_regime": "meta", "cms_periods": (4, 8)}, marks=slow),
        pytest.param({"mixer": "delta_net", "cms_regime": "online", "cms_periods": (4, 8)}, marks=slow),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_microbatches_give_the_step_of_the_batch(options, mask):
    optimizer, state, batch = setup(mask=mask, **options)
    step = jax.jit(functools.partial(train_step, optimizer), static_argnames="accumulate")
    new, outputs = step(state, batch)
    found, others = step(state, batch, accumulate=4)
    for name, value in outputs.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5)
    # moments hold the gradients; Adam's first update is their sign, in which rounding counts
    for a, b in zip(jax.tree.leaves(found.opt_state), jax.tree.leaves(new.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6 * float(jnp.max(jnp.abs(b))))


def test_gradients_are_summed_in_float32():
    optimizer, state, batch = setup(mixer="attention", dtype="bfloat16")
    step = functools.partial(train_step, optimizer)
    traced = jax.make_jaxpr(lambda state, batch: step(state, batch, 2))(state, batch)
    new, _ = jax.eval_shape(lambda state, batch: step(state, batch, 2), state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(new.model)} == {jnp.dtype(jnp.float32)}
    (scan,) = [e for e in traced.jaxpr.eqns if e.primitive.name == "scan"]
    carried = scan.outvars[: scan.params["num_carry"]]
    assert {v.aval.dtype for v in carried} == {jnp.dtype(jnp.float32)}


def test_memory_falls():
    state, batch = jax.eval_shape(lambda: setup(16, 64, mixer="attention", width=32, mlp_hidden=64)[1:])
    optimizer = optax.adam(1e-2)
    mesh = parse_mesh(devices=jax.devices()[:1])
    whole, parts = (
        compile_step(optimizer, mesh, state, batch, accumulate).memory_analysis().temp_size_in_bytes
        for accumulate in (1, 8)
    )
    assert parts < 0.3 * whole


def test_a_diverged_microbatch_is_reported():
    optimizer, state, batch = setup(mixer="linear_attention")
    broken = state.model.embed.embedding
    broken[...] = broken[...].at[0].set(jnp.nan)
    batch["inputs"] = jnp.where(batch["inputs"] == 0, 1, batch["inputs"]).at[-1, 3].set(0)
    _, outputs = jax.jit(functools.partial(train_step, optimizer, accumulate=4))(state, batch)
    assert int(outputs["diverged_layer"]) == 0
    assert not np.isfinite(outputs["loss"])


def test_a_microbatch_has_rows_of_every_device():
    """Traced for eight devices: each microbatch takes a row of each device's share, so nothing moves."""
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((4, 2, *(1,) * (len(AXES) - 2)), AXES, axis_types=auto)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(lambda x: split_batch(x, 2))(jnp.arange(16)).jaxpr
    assert "sharding_constraint" in str(traced)
    np.testing.assert_array_equal(split_batch(jnp.arange(4), 2), [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="batch of 6: expected a multiple of 4"):
        split_batch(jnp.zeros(6), 4)
