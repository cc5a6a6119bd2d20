"""Every optimizer against the same table: what it composes with, and what bad gradients do to it."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_table
import pytest
from flax import nnx
from host_cases import environment
from optimizer_table import OPTIMIZERS, compiled, make, run, tree

from nl_jax import optim

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@functools.cache
def expected(name, steps=4):
    return run(make(name), tree(0), [tree(t + 1) for t in range(steps)], compiled(name))[0]


def assert_close(a, b, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), a, b)


@every_optimizer
def test_in_a_partition_and_a_chain(name):
    """A group alone behaves as a tree of its own, and the other group's optimizer is not disturbed."""
    params = {"mine": tree(0), "rest": jnp.ones(3)}
    gradients = [{"mine": jax.tree.map(jnp.negative, tree(t + 1)), "rest": jnp.ones(3)} for t in range(4)]
    mine = optax.chain(optax.scale(-1.0), make(name))
    tx = optax.multi_transform({"mine": mine, "sgd": optax.sgd(0.1)}, {"mine": "mine", "rest": "sgd"})
    got, _ = run(tx, params, gradients)
    assert_close(got["mine"], expected(name))
    np.testing.assert_allclose(got["rest"], 0.6, rtol=1e-6)


@every_optimizer
def test_masked(name):
    got, _ = run(optax.masked(make(name), {"bias": False, "kernel": True}), tree(0), [tree(t + 1) for t in range(4)])
    np.testing.assert_allclose(got["bias"], tree(0)["bias"] + sum(tree(t + 1)["bias"] for t in range(4)), rtol=1e-4)
    if name != "deep_momentum":  # whose initial memories go with the order of the parameters
        assert_close(got["kernel"], expected(name)["kernel"])


@every_optimizer
def test_injected_hyperparameters(name):
    factory, options = OPTIMIZERS[name]
    static = [k for k, v in options.items() if callable(v) or isinstance(v, int)]
    tx = optax.inject_hyperparams(factory, static_args=static)(0.1, **options)
    step = jax.jit(tx.update)
    got, state = run(tx, tree(0), [tree(t + 1) for t in range(4)], step)
    assert_close(got, expected(name))
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    updates, _ = step(tree(9), state, got)
    if name != "generalized_gradient_descent":  # which goes to the mean of the recent weights then
        assert all(not jnp.any(u) for u in jax.tree.leaves(updates))


@every_optimizer
def test_learning_rate_schedule(name):
    """A rate that falls to zero after four steps: four steps as with a constant, then none."""
    schedule = lambda count: jnp.where(count < 4, 0.1, 0.0)  # noqa: E731
    tx = make(name, schedule)
    step = jax.jit(tx.update)
    got, state = run(tx, tree(0), [tree(t + 1) for t in range(4)], step)
    assert_close(got, expected(name))
    updates, _ = step(tree(9), state, got)
    if name != "generalized_gradient_descent":
        assert all(not jnp.any(u) for u in jax.tree.leaves(updates))


@every_optimizer
def test_accumulated_gradients(name):
    """optax.MultiSteps: two halves whose mean is the gradient."""
    halves = []
    for t in range(4):
        other = jax.tree.map(lambda g: 0.3 * jnp.ones_like(g), tree(t + 1))
        halves += [jax.tree.map(jnp.add, tree(t + 1), other), jax.tree.map(jnp.subtract, tree(t + 1), other)]
    tx = optax.MultiSteps(make(name), 2)
    assert_close(run(tx, tree(0), halves)[0], expected(name), rtol=1e-3, atol=1e-4)


@every_optimizer
def test_bfloat16_parameters_with_float32_state(name):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree(0))
    gradients = [jax.tree.map(lambda g: g.astype(jnp.bfloat16), tree(t + 1)) for t in range(4)]
    tx = make(name)
    updates, state = compiled(name)(gradients[0], tx.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype.name for x in jax.tree.leaves(state)} <= {"float32", "int32", "bool"}
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, tx.init(params))
    # the state is that of a float32 run on the same, rounded numbers
    wide, theirs = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradients[0]))
    _, reference = compiled(name)(theirs, tx.init(wide), wide)
    assert_close(state, reference)


@every_optimizer
def test_zero_gradients(name):
    """Nothing moves from rest, except where the objective asks for it, and nothing is NaN."""
    zero = jax.tree.map(jnp.zeros_like, tree(0))
    params, state = run(make(name), tree(0), [zero] * 3, compiled(name))
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((params, state)))
    if name != "generalized_gradient_descent":
        assert_close(params, tree(0), atol=0.0, rtol=0.0)


@every_optimizer
@pytest.mark.parametrize("size", [1e20, 3e38, 1e-30])
def test_huge_and_tiny_gradients(name, size):
    """A single such gradient leaves parameters and state finite, and so does what comes after."""
    extreme = jax.tree.map(lambda g: jnp.sign(g) * size, tree(1))
    params, state = tree(0), make(name).init(tree(0))
    for g in (tree(2), extreme, tree(3), tree(4)):
        updates, state = compiled(name)(g, state, params)
        params = optax.apply_updates(params, updates)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((params, state)))
    assert optax.tree.get(state, "total_notfinite") == 0


@every_optimizer
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_gradients_are_left_out_and_counted(name, bad):
    broken = tree(7)
    broken["kernel"] = broken["kernel"].at[0, 1, 2].set(bad)
    tx, step = make(name), compiled(name)
    gradients = [tree(t + 1) for t in range(4)]
    params, state = run(tx, tree(0), [broken, gradients[0], broken, broken, *gradients[1:]], step)
    assert_close(params, expected(name), rtol=0.0, atol=0.0)
    assert optax.tree.get(state, "total_notfinite") == 3
    assert optax.tree.get(state, "notfinite_count") == 0
    _, state = step(broken, state, params)
    assert optax.tree.get(state, "notfinite_count") == 1


@every_optimizer
def test_steps_that_are_not_finite_are_left_out_and_counted(name):
    """Gradients are finite, but the rule makes more of them, here by its learning rate at the second step."""
    tx = make(name, lambda count: jnp.where(count == 1, jnp.inf, 0.1))
    step = jax.jit(tx.update)
    after_one, _ = run(tx, tree(0), [tree(1)], step)
    params, state = run(tx, tree(0), [tree(1), tree(2), tree(3)], step)
    assert_close(params, after_one, rtol=0.0, atol=0.0)
    assert optax.tree.get(state, "total_notfinite") == 2
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state))


def test_a_state_that_is_not_finite_is_left_out_and_counted():
    """Where the updates are still finite; infinities that the state starts with are no reason."""

    def update(updates, state, params=None):
        best, total = state
        return updates, (best, total / jnp.where(updates > 2.0, 0.0, 1.0))

    tx = optim.bounded(optax.GradientTransformation(lambda params: (jnp.inf, 1.0 + params), update))
    state = tx.init(jnp.zeros(()))
    for g, moves, count in ((1.0, 1.0, 0), (3.0, 0.0, 1), (1.0, 1.0, 1)):
        updates, state = jax.jit(tx.update)(jnp.asarray(g), state)
        assert (updates, state.total_notfinite, state.inner_state[1]) == (moves, count, 1.0)


# a rule of its own, without ``bounded``, and what of the package else has a state
RULES = {
    "identity_preconditioner": optim.identity_preconditioner(),
    "scale_by_m3": optim.scale_by_m3(periods=(2, 3)),
    "scale_by_delta_momentum": optim.scale_by_delta_momentum(preconditioner=optim.identity_preconditioner()),
    "scale_by_deep_momentum": optim.scale_by_deep_momentum(hidden=()),
    "multi_frequency": optim.multi_frequency(
        {"fast": (optax.adam(0.1), 1), "slow": (optax.adam(0.1), 2)}, {"bias": "fast", "kernel": "slow"}
    ),
    "bounded": optim.bounded(optax.GradientTransformation(lambda p: (p, p), lambda g, state, params=None: (g, state))),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *RULES])
def test_state_can_be_donated(name):
    """Each leaf is a buffer of its own, at the start and after an update."""
    tx = make(name) if name in OPTIMIZERS else RULES[name]
    params = {"kernel": tree(0)["kernel"]} if name == "scale_by_m3" else tree(0)
    state, step = tx.init(params), jax.jit(tx.update, donate_argnums=1)
    for _ in range(3):
        pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state, params))]
        assert len(set(pointers)) == len(pointers)
        _, state = step(params, state, params)


@every_optimizer
def test_empty_trees(name):
    tx = make(name)
    for empty in ({}, (), {"a": {}}):
        updates, _ = tx.update(empty, tx.init(empty), empty)
        assert updates == empty


@every_optimizer
def test_state_does_not_alias_parameters(name):
    """Parameters and state may both be donated to a jitted step."""
    params = tree(0)
    pointers = {p.unsafe_buffer_pointer() for p in jax.tree.leaves(params)}
    assert not pointers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(make(name).init(params))}


@pytest.mark.parametrize("name", ["m3", "dgd"])
def test_with_nnx_optimizer(name):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = optim.DeltaDense(3, 8, rngs=rngs)
            self.second = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    x = jax.random.normal(jax.random.key(0), (64, 3))
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(name, 0.05), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x)[:, 0] - jnp.sin(x[:, 0])) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


@every_optimizer
def test_parameters_that_are_a_module(name):
    """A module is a tree that can be called: labels and masks of its shape are no functions."""
    (trace, _), (modules, _) = (
        run(make(name), kind(tree(0)), [kind(tree(1)), kind(tree(2))]) for kind in (dict, Named)
    )
    for key, value in trace.items():
        np.testing.assert_array_equal(modules.params[key], value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Named:
    params: dict

    def __call__(self, x):
        raise AssertionError("called")


@pytest.mark.parametrize("as_function", [False, True])
def test_labels_and_matrices_that_are_a_module(as_function):
    params = Named({"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))})
    labels, matrices = Named({"a": "fast", "b": "slow"}), Named({"a": True, "b": None})
    given = (lambda _: labels, lambda _: matrices) if as_function else (labels, matrices)
    transforms = {"fast": (optax.sgd(0.1), 1), "slow": (optax.sgd(0.1), 2)}
    trace, _ = run(optim.multi_frequency(transforms, given[0]), params, [params])
    assert [float(trace.params[key][0, 0]) for key in "ab"] == pytest.approx([0.9, 1.0])
    assert optim.matrix_dimensions(params, given[1]).params["b"] is None


SHARDED = """
import json, sys
import nl_jax
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
sys.path.insert(0, sys.argv[1])
import optimizer_table as t

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
specs = {"kernel": P("fsdp", "data"), "stack": P(None, "data", "fsdp"), "bias": P("fsdp")}
shapes = {"kernel": (8, 4), "stack": (3, 4, 8), "bias": (8,)}
report = {}
for name in ("m3", "delta_momentum"):
    trees = [jax.tree.map(jnp.asarray, t.random_tree(i, shapes, np.float32)) for i in range(4)]
    split = [{k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in tree.items()} for tree in trees]
    (a, _), (b, state) = (t.run(t.make(name), x[0], x[1:]) for x in (trees, split))
    same = all(np.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)
    kept = all(b[k].sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), b[k].ndim) for k in b)
    report[name] = [same, kept]
print(json.dumps(report))
"""


def test_sharded_parameters():
    """Over 8 devices the parameters are those of one, and stay split as they were."""
    command = [sys.executable, "-c", SHARDED, os.path.dirname(optimizer_table.__file__)]
    report = json.loads(subprocess.run(command, env=environment(8), stdout=subprocess.PIPE, check=True).stdout)
    assert set(map(tuple, report.values())) == {(True, True)}, report
