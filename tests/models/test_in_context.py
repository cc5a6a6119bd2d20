"""A continuum memory that learns in context: Eq. 71 token by token in float64, causality, splits, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from in_context_cases import VARIANTS, make, text

from nl_jax import InputError
from nl_jax.models.in_context import initial_state, learning_schedule, own_blocks, read_and_learn, with_levels
from nl_jax.modules import ContinuumMemory
from nl_jax.training import init_state, train_step

# exact nesting of three levels is a derivative of fourth order, which did not compile in fifteen minutes
SMALL = {"nested": {"mixer": "delta_net", "periods": (4, 8), "num_layers": 1}}


def sequence_loop(model, tokens, targets, optimizers):
    """One sequence, token by token: every token's own gradient, summed, and each level moved when it is due."""
    config, levels = model.config, list(model.blocks.cms.levels)
    fastest_first = sorted(range(len(levels)), key=lambda i: config.cms_periods[i])
    chunk, nested = min(config.cms_periods), config.cms_variant.startswith("nested")
    # what each level moves: in the nested variant also where every faster one starts, by the same gradients
    weights = [{j: levels[j] for j in fastest_first[: fastest_first.index(i) + 1]} for i in range(len(levels))]
    if not nested:
        weights = [{i: levels[i]} for i in range(len(levels))]
    states = [optimizer.init(w) for optimizer, w in zip(optimizers, weights, strict=True)]
    totals = [jax.tree.map(jnp.zeros_like, w) for w in weights]
    mixers, logits = model.init_state(1), []

    def reading(own, start, mixers):
        part = jax.lax.dynamic_slice_in_dim(tokens, start, chunk)
        own = jax.tree.map(lambda w: w[:, None], own)  # the axis of sequences
        return with_levels(model, own)(part[None], mixers, at_boundary=True)

    def nats(own, t, start, mixers):
        out, _ = reading(own, start, mixers)
        return optax.softmax_cross_entropy_with_integer_labels(out[0, t - start], targets[t])

    gradient = jax.jit(jax.grad(nats))
    read = jax.jit(reading)
    for start in range(0, len(tokens), chunk):
        own = [weights[i][i] for i in range(len(levels))]
        for t in range(start, start + chunk):
            found = gradient(own, t, start, mixers)
            totals = [jax.tree.map(jnp.add, total, {j: found[j] for j in total}) for total in totals]
        out, mixers = read(own, start, mixers)
        logits.append(out[0])
        for place, i in enumerate(fastest_first):
            if (start + chunk) % config.cms_periods[i] == 0:
                moves, states[i] = optimizers[i].update(totals[i], states[i], weights[i])
                weights[i] = optax.apply_updates(weights[i], moves)
                totals[i] = jax.tree.map(jnp.zeros_like, totals[i])
                for faster in fastest_first[:place] if nested else ():
                    weights[faster] = {j: weights[i][j] for j in weights[faster]}
                    states[faster] = optimizers[faster].init(weights[faster])
    return jnp.concatenate(logits), [weights[i][i] for i in range(len(levels))], totals


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "nested"])
def test_learning_equals_a_loop_over_tokens(variant):
    with jax.enable_x64(True):
        model = make(variant, periods=(8, 4, 16), wide=True)
        optimizers = [optax.adam(0.01), optax.sgd(0.3, momentum=0.9), optax.sgd(0.1)]
        tokens, targets = text(40)  # ends inside a context of the slowest level, and of the one before
        logits, state = jax.jit(lambda *a: read_and_learn(*a, optimizers=optimizers))(model, tokens, targets)
        row = 1
        expected, levels, totals = sequence_loop(model, tokens[row], targets[row], optimizers)
        np.testing.assert_allclose(logits[row], expected, rtol=1e-10, atol=1e-10)
        learned = own_blocks([state.levels[f"cms_{i}"].params for i in range(3)])
        waiting = own_blocks([state.pending["cms_2"]])[0]  # gradients of the open context are kept
        for found, plain in (*zip(learned, levels, strict=True), (waiting, totals[2][2])):
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
                np.testing.assert_allclose(a[:, row], b, rtol=1e-10, atol=1e-10)
        still, _ = model(tokens)
        assert float(jnp.max(jnp.abs(still[:, :4] - logits[:, :4]))) < 1e-12  # nothing learned yet
        assert float(jnp.max(jnp.abs(still[:, 4:] - logits[:, 4:]))) > 1e-3


@pytest.mark.parametrize("mixer", [pytest.param("self_modifying_titans", marks=SLOW), "attention"])
def test_causality(mixer):
    model = make(mixer=mixer)
    learn = jax.jit(lambda tokens: read_and_learn(model, tokens[:, :-1], tokens[:, 1:])[0])
    tokens = jnp.concatenate([text(32)[0], jnp.zeros((2, 1), int)], axis=1)
    logits = learn(tokens)
    for t in (0, 3, 4, 5, 16, 31):
        changed = learn(tokens.at[:, t].set((tokens[:, t] + 1) % 11))
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
        assert float(jnp.max(jnp.abs(changed[:, t] - logits[:, t]))) > 1e-4


@pytest.mark.parametrize(
    ("variant", "mixer"),
    [
        ("nested", "delta_net"),
        ("independent", "attention"),
        ("sequential", "self_modifying_titans"),
    ],
)
@pytest.mark.slow
def test_a_text_in_parts(variant, mixer):
    with jax.enable_x64(True):
        model = make(variant, wide=True, **{"mixer": mixer} | SMALL.get(variant, {}))
        tokens, targets = text(48)
        learn = jax.jit(functools.partial(read_and_learn, model))
        logits, last = learn(tokens, targets)
        state, parts = None, []
        for part in (slice(0, 24), slice(24, 48)):
            out, state = learn(tokens[:, part], targets[:, part], None, state)
            parts.append(out)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), logits, atol=1e-9)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def nats(model, tokens, targets):
    logits, _ = read_and_learn(model, tokens, targets)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def directional(function, model, seed=2):
    """Slope along a random direction: by the gradient, and by differences of fourth order."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    way = structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])
    at = [function(jax.tree.map(lambda x, d, s=s: x + 1e-5 * s * d, model, way)) for s in (-2, -1, 1, 2)]
    exact = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (jax.grad(function)(model), way)), strict=True))
    return float(exact), float((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_gradient_is_exact(variant):
    with jax.enable_x64(True):
        tokens, targets = text(32)
        model = make(variant, wide=True, **SMALL.get(variant, {}))
        exact, difference = directional(jax.jit(lambda model: nats(model, tokens, targets)), model)
        assert exact == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(
    ("periods", "mixer"),
    [
        ((2, 4), "attention"),
        pytest.param((2, 4), "delta_net", marks=SLOW),
        pytest.param((2, 4, 8), "attention", marks=SLOW),
    ],
)
def test_a_nested_level_gets_the_exact_gradient_of_where_faster_ones_start(periods, mixer):
    """In each period the slowest level's move is minus the slope of the period's loss, by differences in float64."""
    with jax.enable_x64(True):
        slow, steps = len(periods) - 1, periods[-1] // periods[0]
        model = make("nested", mixer=mixer, periods=periods, wide=True, num_layers=1, context_length=8)
        optimizers = [*[optax.sgd(0.3)] * slow, optax.sgd(1.0)]
        schedule = learning_schedule(model, 2, optimizers)
        tokens, targets = text(2 * periods[-1])
        mask = jnp.ones(tokens.shape).at[0, 1].set(0.0)
        cut = [jnp.moveaxis(x.reshape(2, 2 * steps, periods[0]), 1, 0) for x in (tokens, targets, mask)]
        state = schedule.init(None, jax.tree.map(lambda x: x[0], cut))

        @jax.jit
        def period(state, start, data):
            """A period whose faster levels start elsewhere; the state after it, and each sequence's summed loss."""
            weights = {f"cms_{slow}": state.levels[f"cms_{slow}"]}
            for i in range(slow - 1, -1, -1):
                level = schedule[f"cms_{i}"]
                answer = {"start": start, "mixers": state.levels["mixers"]}
                weights[f"cms_{i}"] = level.start(answer)
                start = start["start"] if isinstance(start, dict) else None
            last, (logits, _) = schedule.run(state._replace(levels=state.levels | weights), data)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, data[1])
            return last, jnp.sum(nats * data[2], axis=(0, 2))

        for n in range(2):  # the second one has blocks and mixers that have learned
            data = jax.tree.map(lambda x, n=n: x[n * steps : (n + 1) * steps], cut)
            start = state.levels[f"cms_{slow}"].params["start"]
            after, _ = period(state, start, data)
            moved = jax.tree.map(jnp.subtract, start, after.levels[f"cms_{slow}"].params["start"])
            leaves, structure = jax.tree.flatten(start)
            keys = jax.random.split(jax.random.key(n), len(leaves))
            way = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

            def along(size, leaves=leaves, way=way, structure=structure, data=data, state=state):
                there = structure.unflatten([x + size * d for x, d in zip(leaves, way, strict=True)])
                return period(state, there, data)[1]

            at = [along(1e-5 * s) for s in (-2, -1, 1, 2)]
            difference = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / 12e-5
            pairs = zip(jax.tree.leaves(moved), way, strict=True)
            exact = sum(jnp.sum(g * d, axis=(0, *range(2, g.ndim))) for g, d in pairs)
            np.testing.assert_allclose(exact, difference, rtol=1e-6)
            state = after


@pytest.mark.slow
def test_online_takes_the_updates_gradients_for_constants():
    with jax.enable_x64(True):
        tokens, targets = text(32)
        online, meta = make(regime="online", wide=True), make(regime="meta", wide=True)
        descend = jax.jit(jax.value_and_grad(nats))
        (loss, gradient), (same, exact) = (descend(model, tokens, targets) for model in (online, meta))
        np.testing.assert_allclose(loss, same, rtol=1e-12)
        # the gradient that counts: of the read alone, with weights of each chunk θ₀ + constant
        schedule = learning_schedule(online, 2)
        cut = tuple(jnp.moveaxis(x.reshape(2, 8, 4), 1, 0) for x in (tokens, targets, jnp.ones((2, 32))))
        state = schedule.init(None, jax.tree.map(lambda x: x[0], cut))
        changes, step = [], jax.jit(schedule.step)
        for chunk in range(8):
            weights = [state.levels[f"cms_{i}"].params for i in range(3)]
            changes.append(
                [
                    jax.tree.map(lambda w, o: w - o[:, None], w, own)
                    for w, own in zip(weights, online.blocks.cms.levels, strict=True)
                ]
            )
            state, _ = step(state, jax.tree.map(lambda x, chunk=chunk: x[chunk], cut))

        def first_order(model):
            mixers, nats = model.init_state(2), 0.0
            for chunk in range(8):
                levels = [
                    jax.tree.map(lambda c, o: c + o[:, None], c, own)
                    for c, own in zip(changes[chunk], model.blocks.cms.levels, strict=True)
                ]
                logits, mixers = with_levels(model, levels)(cut[0][chunk], mixers)
                nats += optax.softmax_cross_entropy_with_integer_labels(logits, cut[1][chunk]).sum()
            return nats / targets.size

        expected = jax.jit(jax.grad(first_order))(online)
        expected.cms_log_rate = gradient.cms_log_rate  # of the rates, which no update before depends on otherwise
        apart = []
        for a, b, c in zip(*map(jax.tree.leaves, (gradient, expected, exact)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
            apart.append(float(jnp.max(jnp.abs(a - c))))
        assert max(apart) > 1e-6


@pytest.mark.slow
def test_huge_rates_stay_finite():
    model = make()
    model.cms_log_rate[...] = jnp.full(3, jnp.log(1e4))
    tokens, targets = text(128)
    logits, state = jax.jit(functools.partial(read_and_learn, model))(tokens, targets)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((logits, state)))


@pytest.mark.parametrize(("regime", "mixer"), [("meta", "delta_net"), ("online", "attention")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_keep_their_dtypes(variant, regime, mixer):
    """Of a model in bfloat16, whose loss and weights in context are float32."""
    tokens, targets = text(8)
    model = jax.eval_shape(lambda: make(variant, regime, mixer, periods=(4, 8), num_layers=1))
    model = jax.eval_shape(lambda m: jax.tree.map(lambda x: x.astype(jnp.bfloat16), m), model)
    batch, optimizer = {"inputs": tokens, "targets": targets, "mask": jnp.ones(tokens.shape)}, optax.adam(1e-3)
    state = jax.eval_shape(lambda m: init_state(lambda: m, optimizer), model)
    new, outputs = jax.eval_shape(functools.partial(train_step, optimizer), state, batch)
    assert shapes(new.model) == shapes(state.model)
    assert outputs["loss"].dtype == jnp.float32
    before = jax.eval_shape(lambda m: initial_state(m, 2), model)
    _, after = jax.eval_shape(read_and_learn, model, tokens, targets, None, before)
    assert shapes(after) == shapes(before)
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(after.levels["cms_1"]))


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_can_be_donated(variant):
    tokens, targets = text(4)
    model = make(variant, mixer="linear_attention", periods=(4, 8), num_layers=1)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state):
        return learning_schedule(model, 2).step(state, (tokens, targets, jnp.ones(tokens.shape)))[0]

    state = initial_state(model, 2)
    for _ in range(3):  # past the end of a context, where a nested level starts anew
        state = advance(state)
    for regime in ("meta", "online"):
        fresh = initial_state(make(variant, regime, "linear_attention", periods=(4, 8), num_layers=1), 2)
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(fresh) if x.size]
        assert len(set(buffers)) == len(buffers)


def test_independent_levels_are_summed_with_weights():
    cms = ContinuumMemory(8, 12, (1, 2), variant="independent", rngs=nnx.Rngs(0))
    cms.mixture[...] = jnp.array([0.5, -2.0])
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    one, two = (level(x) - x for level in cms.levels)
    np.testing.assert_allclose(cms(x), x + 0.5 * one - 2.0 * two, atol=1e-5)


def test_bad_input():
    with pytest.raises(InputError, match="cms_regime='late'"):
        make(regime="late")
    with pytest.raises(InputError, match="chunk_size=3: expected a divisor of the CMS levels' shortest period"):
        make(chunk_size=3)
    with pytest.raises(ValueError, match="level cms_1: period 6; expected a multiple of the shortest, 4"):
        read_and_learn(make(periods=(4, 6)), *text(12))
    with pytest.raises(ValueError, match="30 tokens: level cms of period 4"):
        read_and_learn(make(), *text(30))
    with pytest.raises(ValueError, match="variant='cyclic'"):
        make(variant="cyclic")
    with pytest.raises(ValueError, match="expected a divisor of, and less than"):
        read_and_learn(make("nested", periods=(4, 8, 12)), *text(24))
