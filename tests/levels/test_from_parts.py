"""Levels made of optax transformations and of losses, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from level_cases import assert_close, loss_level, normal

from nl_jax import Schedule
from nl_jax.levels import by_parameters, from_loss, from_optax
from nl_jax.trees import replace_leaves, select_leaves


def test_optax_level_sums_the_gradients_of_its_period():
    with jax.enable_x64(True):
        params, gradients = normal(2, 3), normal(17, 2, 3, seed=1)
        adam = optax.adam(0.1)
        schedule = Schedule([from_optax("w", adam, params, period=5)])
        state = schedule.init(None, {"w": gradients[0]})
        w, memory = jnp.asarray(params), adam.init(jnp.asarray(params))
        for i in range(3):
            updates, memory = adam.update(jnp.asarray(gradients[5 * i : 5 * i + 5].sum(0)), memory)
            w = w + updates
        state = schedule.run(state, {"w": gradients}, open_end=True)
        np.testing.assert_allclose(schedule.read(state, "w"), w, rtol=1e-12)


def test_sums_of_half_precision_gradients_are_float32():
    schedule = Schedule([from_optax("w", optax.sgd(1.0), jnp.zeros((), jnp.bfloat16), period=1024)])
    gradients = {"w": jnp.ones(1024, jnp.bfloat16)}
    state = schedule.run(schedule.init(None, {"w": gradients["w"][0]}), gradients)
    assert schedule.read(state, "w") == -1024.0  # bfloat16 stops at 256
    assert schedule.read(state, "w").dtype == jnp.bfloat16


def test_loss_levels_own_parts_of_one_tree():
    """Two levels of one tree, the fast one seeing the slow one's parameters, the slow one needing the fast one's."""
    with jax.enable_x64(True):
        params = {"body": {"w": jnp.asarray(normal(3, 3)), "b": jnp.zeros(3)}, "head": jnp.asarray(normal(3, seed=1))}

        def loss(p, x):
            return (jnp.tanh(x[:3] @ p["body"]["w"] + p["body"]["b"]) @ p["head"] - x[3]) ** 2

        levels = [
            from_loss("head", loss, params, optax.sgd(0.1), period=2, paths=("head",)),
            from_loss("body", loss, params, optax.sgd(0.05), period=4, paths=("body.w", "body.b")),
        ]
        levels = [by_parameters(levels[0], "body"), by_parameters(levels[1], "head", updated=True)]
        xs = normal(12, 4, seed=2)
        data = {"head": xs, "body": xs}
        schedule = Schedule(levels)
        state = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data)
        expected, slope = params, jax.jit(jax.grad(loss))
        for t in range(2, 13, 2):
            gradient = sum(slope(expected, x)["head"] for x in xs[t - 2 : t])
            expected = {**expected, "head": expected["head"] - 0.1 * gradient}
            if t % 4 == 0:
                total = jax.tree.map(lambda *g: sum(g), *[slope(expected, x)["body"] for x in xs[t - 4 : t]])
                body = jax.tree.map(lambda p, g: p - 0.05 * g, expected["body"], total)
                expected = {**expected, "body": body}
        found = replace_leaves(params, schedule.read(state, "head") | schedule.read(state, "body"))
        assert_close(found, expected, rtol=1e-12)


def test_paths_with_one_beginning_do_not_overlap():
    Schedule([loss_level("x", "a"), loss_level("y", "ab")])
    assert list(select_leaves({"a": {"w": 1}, "ab": 2}, ("a",))) == ["a.w"]


def test_leaves_are_told_apart_by_all_of_their_keys():
    """Names of parameters leave out a last key "value", which is how Flax holds an array; levels do not."""
    tree = {"a": {"value": 1, "b": 2}}
    assert select_leaves(tree, ("a.value",)) == {"a.value": 1}
    assert replace_leaves(tree, {"a.value": 3}) == {"a": {"value": 3, "b": 2}}
    assert replace_leaves(tree, {"a": 3}) == tree
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    for path in ("kernel", "kernel.value"):
        (leaf,) = select_leaves(module, (path,)).values()
        assert leaf.shape == (2, 3)


def test_a_path_that_is_missing_names_the_level():
    with pytest.raises(ValueError, match=r"level 'x': no parameter at 'a\.v'"):
        loss_level("x", "a.v")


@pytest.mark.parametrize("period", [1, 2])
def test_gradients_that_do_not_fit_the_parameters_are_refused(period):
    params = {"w": jnp.ones(3)}
    schedule = Schedule([from_optax("x", optax.sgd(0.1), params, period=period)])
    state = schedule.init(None, {"x": params})
    what = "gradient" if period == 1 else "context"
    for gradient, message in [
        ({"w": jnp.ones(4)}, r"at 'w' has shape \(4,\); expected shape \(3,\)"),
        ({"v": jnp.ones(3)}, r"at 'w' has nothing; expected shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=f"level 'x': {what} {message}"):
            schedule.step(state, {"x": gradient})
