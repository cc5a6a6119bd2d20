"""Levels on a trained model: exact at rate 0, only their own weights move, exact gradients, bounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.models import LanguageModel, named_config
from nl_jax.models.losses import mean_loss
from nl_jax.pretrained.changes import MATRICES
from nl_jax.pretrained.level_stacking import Chunk, Pull, Rates, StackedModel, stack_levels
from nl_jax.pretrained.observed import observed_matmul
from nl_jax.pretrained.stacked_level import REGIMES, RULES, StackedLevel
from nl_jax.streaming.learning import sparing_rates
from nl_jax.trees import named_leaves

LAYERS = 3


def make(mixer="transformer", **options):
    sizes = {"num_layers": LAYERS, "width": 16, "num_heads": 2, "mlp_hidden": 12, "vocab_size": 19, **options}
    return LanguageModel(named_config(mixer, "tiny", **sizes), rngs=nnx.Rngs(0))


def chunk(seed=0, batch=2, time=8, padding=0):
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, 19, (batch, time + 1)))
    mask = jnp.ones((batch, time)).at[:, time - padding :].set(0.0)
    return Chunk(tokens[:, :-1], tokens[:, 1:], mask)


def learn(stacked, chunks, state=None):
    state, step = stacked.init() if state is None else state, jax.jit(stacked.schedule().step)
    reads = []
    for data in chunks:
        state, read = step(state, data)
        reads.append(read)
    return state, reads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unroll", [True, False])
def test_with_learning_rates_of_0_the_logits_are_those_of_the_model(rule, unroll):
    model = make(unroll=unroll)
    levels = [
        StackedLevel("a", blocks=(1,), units=(0.0, 0.5), matrices=("gate", "up", "down"), rule=rule, learning_rate=0.0),
        StackedLevel("b", 2, blocks=(1, 2), units=(0.5, 1.0), matrices=("down",), rule=rule, learning_rate=0.0),
    ]
    stacked = stack_levels(model, levels)
    state, _ = learn(stacked, [chunk(i) for i in range(4)])
    tokens = chunk(9).tokens
    np.testing.assert_allclose(stacked.read(state, tokens)[0], model(tokens)[0], atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_chunk_is_read_as_by_the_model_with_what_was_learned_before(rank):
    """Of low rank, changes are computed beside the weights while they are learned, and added to them after."""
    options = {"rank": rank, "rule": "adam", "learning_rate": 0.1} if rank else {}
    levels = [
        StackedLevel("a", blocks=(-1, 1), matrices=("up", "down"), units=(0.25, 0.75), **options),
        StackedLevel("b", blocks=(1,), matrices=("down",), units=(0.75, 1.0), **options),
    ]
    stacked = stack_levels(make(), levels)
    state, _ = learn(stacked, [chunk(0)])
    assert not np.allclose(stacked.read(state, chunk(0).tokens)[0], make()(chunk(0).tokens)[0], atol=1e-3)
    data = chunk(1)
    _, (read,) = learn(stacked, [data], state)
    logits, mixers = stacked.read(state, data.tokens)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, data.targets)
    np.testing.assert_allclose(read.losses, expected, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(read.state), jax.tree.leaves(mixers), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
def test_only_the_weights_of_levels_change(rank):
    model, rule = make(), "adam"
    levels = [
        StackedLevel("a", blocks=(1,), units=(0.25, 0.5), matrices=("gate", "down"), rule=rule, rank=rank),
        StackedLevel("b", blocks=(2,), matrices=("query",), rule=rule, rank=rank),
    ]
    state, _ = learn(stack_levels(model, levels), [chunk(i) for i in range(3)])
    before, after = named_leaves(model), named_leaves(stack_levels(model, levels).changed(state))
    moved = {name: np.argwhere(np.asarray(after[name] != before[name])) for name in before}
    moved = {name: (where.min(0).tolist(), where.max(0).tolist()) for name, where in moved.items() if len(where)}
    assert moved == {
        "blocks.cms.levels.0.gate.kernel": ([1, 0, 3], [1, 15, 5]),
        "blocks.cms.levels.0.down.kernel": ([1, 3, 0], [1, 5, 15]),
        "blocks.mixer.query.kernel": ([2, 0, 0], [2, 15, 15]),
    }


@pytest.mark.parametrize("rule", RULES)
def test_a_block_that_is_named_twice_is_owned_once(rule):
    once, twice = (
        learn(stack_levels(make(), [StackedLevel("a", blocks=blocks, rule=rule)]), [chunk(0)])[0]
        for blocks in ((2,), (-1, 2))
    )
    for got, want in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_slow_level_learns_the_sum_of_its_period():
    model = make()
    level = StackedLevel("slow", 2, blocks=(0,), matrices=("up",), rule="gradient_descent", learning_rate=1e-3)
    stacked = stack_levels(model, [level])
    chunks = [chunk(0), chunk(1)]
    half, _ = learn(stacked, chunks[:1])
    assert not np.any(half.levels["slow"].change["up"])
    whole, _ = learn(stacked, chunks)
    slope = jax.jit(jax.grad(mean_loss))
    gradients = [slope(model, {"inputs": c.tokens, "targets": c.targets, "mask": c.mask}) for c in chunks]
    mean = sum(g.blocks.cms.levels[0].up.kernel[...][:1] for g in gradients) / 2
    expected = -1e-3 * mean / jnp.maximum(1.0, optax.tree.norm(mean))
    np.testing.assert_allclose(whole.levels["slow"].change["up"], expected, rtol=1e-4, atol=1e-9)


def test_the_preconditioned_step_is_that_of_least_squares_on_the_inputs():
    model = make(num_layers=1)
    level = StackedLevel("a", blocks=(0,), matrices=("down",), learning_rate=0.3, ridge=0.7)
    data = chunk(0, padding=3)
    state, _ = learn(stack_levels(model, [level]), [data])
    batch = {"inputs": data.tokens, "targets": data.targets, "mask": data.mask}
    gradient = jax.jit(jax.grad(mean_loss))(model, batch).blocks.cms.levels[0].down.kernel[...][0] * jnp.sum(data.mask)
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    x = model.embedded(data.tokens)
    x = x + block.mixer(block.mixer_norm(x))[0]
    mlp = block.cms.levels[0]
    hidden = jax.nn.silu(mlp.gate(mlp.norm(x))) * mlp.up(mlp.norm(x))
    keys = np.asarray(hidden[np.asarray(data.mask) > 0], np.float64)  # padding does not count
    ridge = 0.7 / np.mean(1 / np.sum(keys**2, axis=1))  # one key may be a thousand times as long as all others
    expected = -0.3 * np.linalg.solve(keys.T @ keys + ridge * np.eye(keys.shape[1]), np.asarray(gradient))
    np.testing.assert_allclose(state.levels["a"].change["down"][0], expected, rtol=2e-4, atol=1e-6)
    seen = state.levels["a"].seen["down"]
    assert seen.inputs[0] == len(keys)
    np.testing.assert_allclose(seen.products[0], keys.T @ keys, rtol=1e-4, atol=1e-5)


def test_observing_a_product_changes_neither_it_nor_its_gradients():
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 3, 4)), jax.random.normal(keys[1], (4, 5))
    zero = jnp.zeros((4, 4)), jnp.zeros(()), jnp.zeros(())
    got = jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(observed_matmul(x, k, *zero))), argnums=(0, 1))(x, kernel)
    want = jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(x @ k)), argnums=(0, 1))(x, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_meta_regime_lets_gradients_through_updates(rule):
    """In the meta regime that gradient is exact: it equals finite differences."""
    model, (first, second, third) = make(num_layers=1), map(chunk, range(3))

    def loss(scale, regime):
        level = StackedLevel("a", blocks=(0,), rule=rule, learning_rate=0.05, regime=regime)
        stacked = stack_levels(model, [level])
        state = stacked.init()
        changes = state.levels["a"]
        start = {"down": jnp.full_like(changes.change["down"], 0.01) * scale}
        state = state._replace(levels={"a": changes._replace(change=start)})
        for data in (first, second):  # two updates, since Adam's first depends on the signs of the gradient alone
            state, _ = stacked.schedule().step(state, data)
        return jnp.sum(stacked.schedule().step(state, third)[1].losses)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
        model = wide
        slopes = {regime: float(jax.jit(jax.grad(lambda s, r=regime: loss(s, r)))(1.0)) for regime in REGIMES}
        step = 1e-4
        plain = jax.jit(lambda s: loss(s, "meta"))
        expected = float(plain(1.0 + step) - plain(1.0 - step)) / (2 * step)
    assert slopes["meta"] == pytest.approx(expected, rel=2e-3)
    assert abs(slopes["online"] - expected) > 1e-3 * abs(expected)


def test_blocks_below_the_first_level_have_no_backward_pass():
    def products(first):
        stacked = stack_levels(make(unroll=True), [StackedLevel("a", blocks=(first,), rule="gradient_descent")])
        text = str(jax.make_jaxpr(stacked.schedule().step)(stacked.init(), chunk()))
        return text.count("dot_general")

    counts = [products(first) for first in range(LAYERS)]
    assert counts[0] > counts[1] > counts[2]


OPTIONS = given(
    rule=st.sampled_from(RULES),
    rate=st.sampled_from([1e-6, 1.0, 1e3, 1e12, 1e30]),
    ridge=st.sampled_from([1e-6, 1.0, 1e9]),
    retention=st.sampled_from([0.0, 0.5, 1.0]),
    matrices=st.sets(st.sampled_from(sorted(MATRICES)), min_size=1),
    period=st.integers(1, 3),
    same=st.booleans(),
    rank=st.sampled_from([None, 1]),
    protects=st.booleans(),
)


def check_bounded(rule, rate, ridge, retention, matrices, period, same, rank, protects):
    options = {"learning_rate": rate, "ridge": ridge, "retention": retention, "matrices": tuple(sorted(matrices))}
    options |= {"rank": None if rule == "preconditioned" or protects else rank, "protects": protects}
    level = StackedLevel("a", period, blocks=(0, 1), rule=rule, **options)
    stacked = stack_levels(make(num_layers=2), [level])
    protected, _ = jax.jit(stacked.protect)(stacked.init(), chunk(0))
    stacked = StackedModel(stacked.model, [level], sparing_rates([level], protected))
    state, reads = learn(stacked, [chunk(0 if same else i) for i in range(6)], protected)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((state, reads)))


test_bounded = settings(max_examples=4, deadline=None, derandomize=True)(OPTIONS(check_bounded))
test_bounded_for_more_options = pytest.mark.slow(
    settings(max_examples=12, deadline=None, derandomize=True)(OPTIONS(check_bounded))
)


LEVELS = {
    "rule": ({"rule": "sgd"}, "rule='sgd'"),
    "matrix": ({"matrices": ("fc1",)}, "'fc1'"),
    "units": ({"units": (0.5, 0.2)}, "units"),
    "units of attention": ({"units": (0.0, 0.5), "matrices": ("query",)}, "units are of an MLP"),
    "rate": ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    "not finite": ({"learning_rate": float("nan")}, "learning_rate=nan"),
    "retention": ({"retention": 1.5}, "retention=1.5"),
    "ridge": ({"ridge": 0.0}, "ridge=0.0"),
    "no blocks": ({"blocks": ()}, "owns nothing"),
    "rank": ({"rank": 0, "rule": "adam"}, "rank=0"),
    "rank of a preconditioner": ({"rank": 2}, "whole matrices"),
    "rank of what protects": ({"rank": 2, "rule": "adam", "protects": True}, "whole matrices"),
    "block": ({"blocks": (LAYERS,)}, f"block {LAYERS}"),
    "no units": ({"units": (0.0, 0.001)}, r"units=\(0.0, 0.001\): none of \d+ hidden units"),
}


@pytest.mark.parametrize(("options", "message"), LEVELS.values(), ids=LEVELS)
def test_a_level_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        stack_levels(make(), [StackedLevel("a", **{"blocks": (0,), **options})])


def test_levels_that_share_weights_are_refused():
    one = StackedLevel("a", blocks=(0, 1), units=(0.0, 0.6))
    with pytest.raises(InputError, match="'a' and 'b' both own 'down' of block 1"):
        stack_levels(make(), [one, StackedLevel("b", blocks=(1,), units=(0.5, 1.0))])
    with pytest.raises(InputError, match="name of its own"):
        stack_levels(make(), [one, dataclasses.replace(one, blocks=(2,))])
    with pytest.raises(InputError, match="cms_regime"):
        stack_levels(make("hope", cms_regime="online", cms_periods=(16,), chunk_size=16), [one])


def test_one_input_that_is_far_longer_than_others_does_not_set_the_ridge():
    """Trained models have tokens whose inputs are a thousand times as long; the ridge is relative to usual inputs."""

    def inverse_of(rows):
        kernel, zero = jnp.zeros((4, 3)), (jnp.zeros((4, 4)), jnp.zeros(()), jnp.zeros(()))

        def loss(*seen):
            return jnp.sum(observed_matmul(rows, kernel, *seen))

        return jax.grad(loss, argnums=(0, 1, 2))(*zero)

    rows = jax.random.normal(jax.random.key(0), (16, 4))
    products, count, inverse = inverse_of(rows)
    np.testing.assert_allclose(products, rows.T @ rows, rtol=1e-5)
    np.testing.assert_allclose((count, inverse), (16, jnp.sum(1 / jnp.sum(rows**2, axis=1))), rtol=1e-5)
    _, more, longer = inverse_of(jnp.concatenate([rows, 1e3 * rows[:1]]))
    np.testing.assert_allclose(more / longer, 17 / 16 * count / inverse, rtol=1e-5)


def test_rates_may_be_traced_and_are_those_of_the_levels():
    model, data = make(), chunk()
    levels = [StackedLevel("a", blocks=(-1,), learning_rate=0.3, ridge=2.0)]
    want, _ = learn(stack_levels(model, levels), [data])
    plain = [dataclasses.replace(level, learning_rate=1.0, ridge=1.0) for level in levels]
    step = jax.jit(lambda state, rates: StackedModel(model, plain, {"a": rates}).schedule().step(state, data)[0])
    got = step(stack_levels(model, plain).init(), Rates(0.3, 2.0))
    for name, leaf in named_leaves(want).items():
        np.testing.assert_allclose(named_leaves(got)[name], leaf, rtol=1e-4, atol=1e-6)


def test_a_pull_adds_its_gradient():
    """strength · (change - centre) is added to the mean gradient of a target."""
    model, data = make(), chunk()
    level = StackedLevel("a", blocks=(-1,), rule="gradient_descent", learning_rate=0.1)
    stacked = stack_levels(model, [level])
    state = stacked.init()
    change = state.levels["a"].change
    centre, strength = (jax.tree.map(lambda leaf, v=v: leaf + v, change) for v in (0.5, 2.0))

    def read(name):
        return state.levels[name].change

    free, _ = stacked.flow(read, data)
    pulled, _ = stacked.flow(read, data._replace(pull={"a": Pull(centre, strength)}))
    want = free["a"][0]["down"] - 2.0 * 0.5 * jnp.sum(data.mask)
    np.testing.assert_allclose(pulled["a"][0]["down"], want, rtol=1e-5)
