"""Levels and schedules: every form of running one is the plain loop, and costs what the timeline says."""

import collections
import json
import os
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from nl_jax import Level, Schedule
from nl_jax.costs import count_flops
from nl_jax.levels import (
    Pair,
    by_backpropagation,
    by_context,
    by_parameters,
    from_loss,
    from_memory,
    from_optax,
    restarted_by,
)
from nl_jax.memory import Architecture, Rule
from nl_jax.trees import replace_leaves, select_leaves

SIZE = 3


def scanned(schedule, state, data):
    """One step after the other: conditions."""

    def body(state, x):
        out = schedule.step(state, x)
        return out if schedule.has_aux else (out, None)

    return jax.lax.scan(body, state, data)


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


# A system in which everything depends on everything, as levels and as a plain loop.


def mixture(name, states, x):
    """A level's context of one step, from all states."""
    return 0.3 * sum(states.values()) + len(name) * x


def settle(period, gather, state, own, answers):
    """An update; it tells the places of a stack apart."""
    own = sum((i + 1) * c for i, c in enumerate(own)) / period if gather == "stack" else own
    return 0.8 * state + 0.1 * own + 0.05 * sum(answers)


def make_schedule(specs):
    levels = []
    for name, (period, gather, needs, sees, slow) in specs.items():

        def update(state, context, period=period, gather=gather):
            own, answers = context if isinstance(context, tuple) else (context, {})
            return jnp.tanh(settle(period, gather, state, own, list(answers.values())))

        start = np.arange(SIZE) / (1.0 + len(name))
        levels.append(
            Level(
                name,
                period,
                lambda key, data, start=start: start,
                update,
                gather=gather,
                needs=needs,
                sees=sees,
                starts_from=slow,
                start=lambda answer: 0.5 * answer,
            )
        )

    def flow(read, x):
        states = {name: read(name) for name in specs}
        return {name: mixture(name, states, x) for name in specs}, sum(states.values())

    return Schedule(levels, flow, has_aux=True)


def plain_loop(specs, xs):
    """What a schedule is: contexts from before the step, updates from fast to slow and by need, restarts."""
    states = {name: np.arange(SIZE) / (1.0 + len(name)) for name in specs}
    for name, (*_, slow) in sorted(specs.items(), key=lambda item: -item[1][0]):
        if slow:
            states[name] = 0.5 * states[slow]
    waiting, aux = {name: [] for name in specs}, []
    for t, x in enumerate(xs):
        aux.append(sum(states.values()))
        for name in specs:
            waiting[name].append(mixture(name, states, x))
        before = dict(states)
        for period in sorted({spec[0] for spec in specs.values()}):
            if (t + 1) % period:
                continue
            todo = [name for name in specs if specs[name][0] == period]
            while todo:
                name = next(n for n in todo if not set(specs[n][2]) & set(todo))
                _, gather, needs, sees, _ = specs[name]
                own = waiting[name] if gather == "stack" else sum(waiting[name])
                answers = [states[n] for n in needs] + [before[n] for n in sees]
                states[name] = np.tanh(settle(period, gather, states[name], own, answers))
                waiting[name] = []
                todo.remove(name)
            changed = {name for name in specs if specs[name][0] == period}
            for name, (*_, slow) in sorted(specs.items(), key=lambda item: -item[1][0]):
                if slow in changed:
                    states[name] = 0.5 * states[slow]
                    changed.add(name)
    return states, waiting, np.array(aux)


@st.composite
def systems(draw):
    """Names and what belongs to them, at periods that divide each other or not."""
    choices = [(1, 2, 4), (1, 3, 6), (2, 6), (2, 3), (1, 4, 6), (2, 4, 12), (1,), (3,), (5, 1)]
    periods = draw(st.lists(st.sampled_from(draw(st.sampled_from(choices))), min_size=1, max_size=4))
    names = ["abcd"[i] * (i + 1) for i in range(len(periods))]
    specs = {}
    for i, name in enumerate(names):
        # whom it can need without a circle, and whom it can see
        fast = [n for j, n in enumerate(names) if periods[j] < periods[i] or (periods[j] == periods[i] and j < i)]
        slow = [n for j, n in enumerate(names) if periods[j] >= periods[i]]
        origins = [n for j, n in enumerate(names) if periods[j] > periods[i] and periods[j] % periods[i] == 0]
        needs = draw(st.lists(st.sampled_from(fast), unique=True)) if fast else []
        sees = [n for n in draw(st.lists(st.sampled_from(slow), unique=True)) if n not in needs]
        origin = draw(st.sampled_from([None, *origins]))
        specs[name] = (periods[i], draw(st.sampled_from(["stack", "sum"])), tuple(needs), tuple(sees), origin)
    keys = draw(st.permutations(names))
    return {name: specs[name] for name in keys}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(specs=systems(), n=st.integers(1, 26), data=st.data())
def test_nested_scans_and_conditions_are_the_plain_loop(specs, n, data):
    cut = data.draw(st.integers(0, n))
    xs = np.random.default_rng(n).standard_normal((n, SIZE))
    with jax.enable_x64(True):
        schedule = make_schedule(specs)
        first = schedule.init(None, xs[0])
        by_step, aux_by_step = scanned(schedule, first, xs)
        nested, parts = first, []
        for begin, end in ((0, cut), (cut, n)):
            if end > begin:
                nested, aux = schedule.run(nested, xs[begin:end], start=begin, open_end=True)
                parts.append(aux)
        assert_close(nested, by_step, rtol=1e-12, atol=1e-13)
        states, waiting, aux = plain_loop(specs, xs)
        assert_close(nested.levels, states, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(np.concatenate(parts), aux, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(aux_by_step, aux, rtol=1e-12, atol=1e-13)
        for name, kept in nested.pending.items():  # what a period not yet over has gathered is not lost
            contexts = waiting[name]
            if specs[name][1] == "sum":
                np.testing.assert_allclose(kept, sum(contexts, np.zeros(SIZE)), rtol=1e-12, atol=1e-13)
            else:
                empty = [np.zeros(SIZE)] * (specs[name][0] - len(contexts))
                np.testing.assert_allclose(kept, contexts + empty, rtol=1e-12, atol=1e-13)


# A system of the constructors: a memory, an optimizer and a loss.


def three_levels(periods=(4, 1, 8), size=4, **mlp):
    memory = from_memory("memory", Architecture(size, size, **mlp), period=periods[0], eta=0.5)

    def loss(w, x, answers):
        return jnp.mean((jnp.tanh(x @ w) - x @ answers["fast"]) ** 2)

    levels = [
        memory,
        from_optax("fast", optax.sgd(0.05, momentum=0.9), jnp.eye(size), period=periods[1]),
        from_loss("slow", loss, 0.5 * jnp.eye(size), optax.adam(1e-2, eps=0.1), period=periods[2], needs=("fast",)),
    ]

    def flow(read, x):
        def surprise(fast):
            return jnp.mean((read("memory", (x @ fast)[None])[0] - x @ read("slow")) ** 2)

        return {"memory": Pair(x @ read("slow"), x), "fast": jax.grad(surprise)(read("fast")), "slow": x}

    return Schedule(levels, flow)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("periods", "others"), [((4, 1, 8), ("remat", "steps")), ((3, 1, 4), ())])
def test_gradients_flow_through_every_update(periods, others):
    with jax.enable_x64(True):
        schedule = three_levels(periods)
        xs, direction = normal(24, 4), normal(24, 4, seed=1)
        start = schedule.init(jax.random.key(0), xs[0])

        def loss(xs, slow, run):
            state = run(start._replace(levels={**start.levels, "slow": schedule["slow"].start(slow)}), xs)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(state.levels) if leaf.ndim)

        forms = {
            "nested": schedule.run,
            "remat": lambda state, xs: schedule.run(state, xs, remat=True),
            "steps": lambda state, xs: scanned(schedule, state, xs)[0],
        }
        slow, other = 0.5 * np.eye(4), normal(4, 4, seed=2)
        found = {
            name: jax.jit(jax.grad(lambda xs, slow, run=run: loss(xs, slow, run), argnums=(0, 1)))(xs, slow)
            for name, run in forms.items()
            if name in ("nested", *others)
        }
        for name in others:
            assert_close(found[name], found["nested"], rtol=1e-9, atol=1e-12)
        value = jax.jit(lambda xs, slow: loss(xs, slow, schedule.run))
        step = 1e-6
        difference = value(xs + step * direction, slow + step * other) - value(
            xs - step * direction, slow - step * other
        )
        expected = np.sum(found["nested"][0] * direction) + np.sum(found["nested"][1] * other)
        np.testing.assert_allclose(difference / (2 * step), expected, rtol=1e-6)
        assert abs(expected) > 1e-2


def test_vmap_is_a_loop_over_systems():
    with jax.enable_x64(True):
        schedule = three_levels(hidden=5, depth=2)
        xs = normal(5, 16, 4)
        keys = jax.random.split(jax.random.key(0), 5)
        states = jax.vmap(schedule.init)(keys, xs[:, 0])
        together = jax.vmap(schedule.run)(states, xs)
        by_step = jax.vmap(lambda state, xs: scanned(schedule, state, xs)[0])(states, xs)
        run = jax.jit(schedule.run)
        apart = [run(schedule.init(key, x[0]), x) for key, x in zip(keys, xs, strict=True)]
        apart = jax.tree.map(lambda *leaves: np.stack(leaves), *apart)
        assert_close(together, apart, rtol=1e-10, atol=1e-12)
        assert_close(by_step, apart, rtol=1e-10, atol=1e-12)


# Cost.


def test_flops_are_those_of_the_timeline():
    n, size = 64, 32
    batch = jax.ShapeDtypeStruct((16, size), jnp.float32)

    def loss(p, x):
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - x) ** 2)

    own = by_backpropagation(loss, ["a", "b"])

    def flow(read, x):
        return own(read, x) | {"loss": x, "memory": Pair(x[0], x[1])}

    matrix = jnp.eye(size)
    levels = [
        from_optax("a", optax.adam(0.1), matrix),
        from_optax("b", optax.adam(0.1), matrix, period=16),
        from_loss("loss", lambda w, x: jnp.mean((x @ w @ w - x) ** 2), matrix, optax.adam(0.1), period=4),
        from_memory("memory", Architecture(size, size, hidden=size, depth=2), period=16),
    ]
    schedule = Schedule(levels, flow)
    state = jax.eval_shape(lambda x: schedule.init(jax.random.key(0), x), batch)
    contexts = jax.eval_shape(lambda s, x: schedule._contexts(s, x)[0], state.levels, batch)
    predicted = n * sum(count_flops(lambda s, x: schedule._contexts(s, x)[0], state.levels, batch))
    updates = dict(zip([name for rank in schedule.order for name in rank], schedule.timeline(n).sum(0), strict=True))
    assert updates == {"a": 64, "loss": 16, "b": 4, "memory": 4}
    costs = {}
    for name, count in updates.items():
        level = schedule[name]
        leading = (level.period,) if level.gather == "stack" else ()
        context = jax.tree.map(lambda c, s=leading: jax.ShapeDtypeStruct((*s, *c.shape), c.dtype), contexts[name])
        costs[name] = sum(count_flops(level.update, state.levels[name], context))
        predicted += count * costs[name]
    xs = jax.ShapeDtypeStruct((n, *batch.shape), batch.dtype)
    assert sum(count_flops(schedule.run, state, xs)) == pytest.approx(predicted, rel=0.05)
    # 12 steps, 4 whole periods and 4 steps: conditions for the slow levels in the first and the last part only
    xs = jax.ShapeDtypeStruct((n + 16, *batch.shape), batch.dtype)
    ragged = sum(count_flops(lambda s, x: schedule.run(s, x, start=4, open_end=True), state, xs))
    assert ragged < 1.05 * (predicted * (n + 16) / n + 4 * (costs["b"] + costs["memory"]))
    masked = sum(count_flops(lambda s, x: scanned(schedule, s, x)[0], state, xs)) * n / (n + 16)
    assert masked > 1.5 * predicted  # a condition counts its costliest branch: the count above can tell


@pytest.mark.parametrize("periods", [(1, 2, 6), (2, 3), (2, 5, 10)])
def test_what_is_not_due_does_not_run(periods):
    ran = collections.Counter()

    def make(period):
        def update(state, context):
            jax.debug.callback(lambda: ran.update([f"level {period}"]))
            return state + jnp.sum(context)

        return Level(f"level {period}", period, lambda key, data: 0.0, update)

    schedule = Schedule([make(period) for period in periods])
    data = {level.name: jnp.ones(30) for level in schedule.levels}
    state = schedule.init(None, jax.tree.map(lambda x: x[0], data))
    expected = dict(zip([level.name for level in schedule.levels], schedule.timeline(30).sum(0), strict=True))
    for run in (schedule.run, lambda state, data: scanned(schedule, state, data)[0]):
        ran.clear()
        jax.block_until_ready(jax.jit(run)(state, data))
        jax.effects_barrier()
        assert ran == expected


# Order.


def still(name, period=1, **options):
    return Level(name, period, lambda key, data: 0.0, lambda state, context: state, **options)


def test_order_is_computed_from_periods_and_needs():
    schedule = Schedule(
        [
            still("weights", needs=("first", "second")),
            still("slow", 8),
            still("second"),
            still("middle", 4, needs=("weights",)),
            still("first"),
            still("late", 8, needs=("slow", "middle")),
        ]
    )
    assert schedule.order == (("second", "first"), ("weights",), ("middle",), ("slow",), ("late",))
    assert schedule.table(8).splitlines()[-1] == "late     ·······█"
    np.testing.assert_array_equal(schedule.timeline(8).sum(0), [8, 8, 8, 2, 1, 1])


def test_adam_is_two_parallel_moments_and_the_weights_after_them():
    def moment(name, rate, power):
        return Level(
            name,
            1,
            lambda key, data: jnp.zeros(3),
            lambda m, g: rate * m + (1 - rate) * g[0] ** power,
        )

    def descend(state, context):
        w, t = state
        t = t + 1
        first = context.answers["first"] / (1 - 0.9**t)
        second = context.answers["second"] / (1 - 0.999**t)
        return w - 0.1 * first / (jnp.sqrt(second) + 1e-8), t

    weights = Level(
        "weights", 1, lambda key, data: (jnp.ones(3), 0.0), descend, lambda s, q: s[0], needs=("first", "second")
    )

    def flow(read, x):
        g = jax.grad(lambda w: jnp.sum((w - x) ** 2))(read("weights"))
        return {"first": g, "second": g}

    with jax.enable_x64(True):
        schedule = Schedule([weights, moment("first", 0.9, 1), moment("second", 0.999, 2)], flow)
        assert schedule.order == (("first", "second"), ("weights",))
        xs = normal(7, 3)
        state = schedule.run(schedule.init(None, xs[0]), xs)
        adam, w = optax.adam(0.1), jnp.ones(3)
        memory = adam.init(w)
        for x in xs:
            updates, memory = adam.update(2 * (w - x), memory)
            w = w + updates
        np.testing.assert_allclose(schedule.read(state, "weights"), w, rtol=1e-12)


# Constructors.


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


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.int32, jnp.uint8, jnp.uint32, jnp.bool_, jnp.float16])
@pytest.mark.parametrize("period", [4, 6])  # scans and conditions
def test_sums_of_narrow_contexts_do_not_overflow(dtype, period):
    level = Level("sum", period, lambda key, data: 0.0, lambda state, total: total.astype(float), gather="sum")
    schedule = Schedule([level, Level("other", 4, lambda key, data: 0.0, lambda state, _: state)])
    most = 1 if dtype == jnp.bool_ else 60000 if dtype == jnp.float16 else min(jnp.iinfo(dtype).max, 2**24)
    data = {name: jnp.full(12, most, dtype) for name in ("sum", "other")}
    state = schedule.init(None, jax.tree.map(lambda x: x[0], data))
    for found in (schedule.run(state, data), scanned(schedule, state, data)[0]):
        assert found.levels["sum"] == period * most


def levels_that_share():
    """Levels whose initial states share arrays with each other, with what made them, or within themselves."""
    params = {"w": jnp.ones(3), "v": jnp.ones(3)}
    pair = Pair(jnp.ones(3), jnp.ones(3))
    zeros = jnp.zeros(2)
    schedule_free = optax.contrib.schedule_free_sgd(0.1)  # its state holds the parameters

    def loss(tree, x):
        return jnp.sum(tree["w"] * tree["v"] * x)

    levels = [
        from_optax("slow", schedule_free, params, period=4),
        restarted_by(from_optax("fast", optax.adam(0.1), params, period=2), "slow"),
        from_loss("loss", loss, params, schedule_free, paths=("w",)),
        from_memory("memory", Architecture(3, 3), period=2),
        from_memory("given", Architecture(3, 3), period=2, initial=(jnp.eye(3),)),
        from_memory("deep", Architecture(3, 3, hidden=4, depth=2), period=2),
        by_context("kept", 3, 3, window=4),
        Level("twice", 1, lambda key, data: (zeros, zeros), lambda state, context: (2 * state[0], 2 * state[0])),
        Level("of data", 1, lambda key, data: data["of data"], lambda state, context: context[0]),
    ]
    memories = ("memory", "given", "deep", "kept")
    data = {level.name: pair if level.name in memories else jnp.ones(3) for level in levels}
    return levels, data | {"slow": params, "fast": params}


def assert_own_buffers(*trees):
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    assert len(set(pointers)) == len(pointers)


def test_states_can_be_donated():
    """Every array of a state is its own; what it was made from can make another one afterwards."""
    levels, data = levels_that_share()
    schedule = Schedule(levels)
    step = jax.jit(schedule.step, donate_argnums=0)
    ends = []
    for _ in range(2):
        state = schedule.init(jax.random.key(0), data)
        assert_own_buffers(state, data["slow"], data["of data"])
        for _ in range(5):
            state = step(state, data)
            assert_own_buffers(state)
        ends.append(state)
    assert_close(*ends)


@pytest.mark.parametrize("name", ["slow", "loss", "memory", "given", "deep", "kept"])
def test_a_level_alone_can_be_donated(name):
    levels, data = levels_that_share()
    (level,) = (level for level in levels if level.name == name)
    first = level.init(jax.random.key(0), data)
    assert_own_buffers(first, data["slow"])
    jax.block_until_ready(jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)(first))
    assert_own_buffers(level.init(jax.random.key(0), data), data["slow"])


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
        expected = params
        for t in range(2, 13, 2):
            gradient = sum(jax.grad(loss)(expected, x)["head"] for x in xs[t - 2 : t])
            expected = {**expected, "head": expected["head"] - 0.1 * gradient}
            if t % 4 == 0:
                total = jax.tree.map(lambda *g: sum(g), *[jax.grad(loss)(expected, x)["body"] for x in xs[t - 4 : t]])
                body = jax.tree.map(lambda p, g: p - 0.05 * g, expected["body"], total)
                expected = {**expected, "body": body}
        found = replace_leaves(params, schedule.read(state, "head") | schedule.read(state, "body"))
        assert_close(found, expected, rtol=1e-12)


def test_matrix_memory_is_the_recurrence():
    with jax.enable_x64(True):
        n, period, start = 12, 4, normal(3, 2, seed=3)
        keys, values = normal(n, 5, 3), normal(n, 5, 2, seed=1)
        alpha = 1 / (1 + np.exp(-normal(n, 5, seed=2)))
        level = from_memory("m", Architecture(3, 2), period=period, batch=(5,), initial=(start,), eta=0.7)
        schedule = Schedule([level])
        data = {"m": Pair(keys, values, alpha=alpha)}
        state = schedule.run(schedule.init(None, jax.tree.map(lambda x: x[0], data)), data)
        change = np.zeros((5, 3, 2))
        for k, v, a in zip(keys, values, alpha, strict=True):
            step = 0.7 / (1 + 3 * 0.7 * (k**2).sum(-1))  # L2 and Delta Gradient Descent: 2 + 1
            answer = np.einsum("bi,bio->bo", k, change)
            write = -3 * step[:, None] * answer - step[:, None] * 2 * (k @ start - v)
            change = a[:, None, None] * change + k[:, :, None] * write[:, None, :]
        np.testing.assert_allclose(state.levels["m"].delta_w[0], change, rtol=1e-10, atol=1e-12)
        queries = normal(5, 6, 3, seed=4)
        np.testing.assert_allclose(schedule.read(state, "m", queries), queries @ (start + change), rtol=1e-10)


def test_mlp_memory_descends_by_chunks():
    """The paper's rule without a delta term is gradient descent, gradients at the chunk's start."""
    with jax.enable_x64(True):
        n, period = 12, 4
        architecture = Architecture(3, 2, hidden=4, depth=2)
        level = from_memory("m", architecture, rule=Rule("paper", delta=False), period=period, batch=(2, 3), eta=0.1)
        schedule = Schedule([level])
        data = {"m": Pair(normal(n, 2, 3, 3), normal(n, 2, 3, 2, seed=1))}
        state = schedule.init(jax.random.key(0), jax.tree.map(lambda x: x[0], data))
        initial = tuple(w.astype(float) for w in state.levels["m"].initial)
        state = schedule.run(state, data)

        def loss(weights, keys, values):
            return jnp.sum((jax.nn.silu(keys @ weights[0]) @ weights[1][0] - values) ** 2)

        for i in range(2):
            for j in range(3):
                weights = initial
                for t in range(0, n, period):
                    pairs = [u[t : t + period, i, j] for u in data["m"][:2]]
                    weights = jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights, *pairs))
                found = jax.tree.map(lambda w, i=i, j=j: w[i, j], schedule.read(state, "m"))
                assert_close(found, weights, rtol=1e-9, atol=1e-12)


# Seeing.


def test_tree_says_what_there_is():
    inner = Schedule([from_optax("inside", optax.sgd(0.1), jnp.zeros(2))])

    def outer(w, x):
        return jnp.sum(w * x)

    schedule = Schedule(
        [
            from_loss("slow", outer, jnp.zeros((2, 3)), optax.adam(0.1), period=8, inner=inner),
            from_memory("memory", Architecture(4, 2), batch=(5,), period=2),
            from_optax("fast", optax.sgd(0.1), jnp.zeros(7), objective="outer"),
        ],
        lambda read, x: {"slow": jnp.ones(()), "memory": Pair(jnp.ones((5, 4)), jnp.ones((5, 2))), "fast": jnp.ones(7)},
    )
    assert schedule.tree(schedule.init(None, jnp.ones(()))).splitlines() == [
        "slow: period 8, context data, objective outer, 6 parameters, 13 in its optimizer",
        "  » inside: period 1, context gradients, summed, objective what made the gradients",
        "  memory: period 2, context keys and values, objective l2, 40 parameters, 0 in its optimizer",
        "    fast: period 1, context gradients, summed, objective outer, 7 parameters, 0 in its optimizer",
    ]


def test_plot_shows_the_timeline(tmp_path):
    schedule = Schedule([still("fast"), still("slow", 3)])
    figure = schedule.plot(6, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fast (period 1)", "slow (period 3)"]
    assert [list(c.get_positions()) for c in axes.collections] == [[1, 2, 3, 4, 5, 6], [3, 6]]


# Bad input.


def loss_level(name, *paths):
    tree = {"a": {"w": jnp.ones(2), "b": jnp.ones(2)}, "ab": jnp.ones(2)}
    return from_loss(name, lambda p, x: 0.0, tree, optax.sgd(0.1), paths=paths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: still("slow", 0), r"level 'slow': period=0 must"),
        (lambda: still("slow", 1.5), r"level 'slow': period=1.5 must"),
        (lambda: still("slow", True), r"level 'slow': period=True must"),
        (lambda: Schedule([]), r"levels=\(\) must hold one or more"),
        (lambda: still("slow", gather="mean"), r"level 'slow': gather='mean' must"),
        (lambda: still("slow", starts_from="other"), r"level 'slow': starts_from='other' needs"),
        (lambda: Schedule([still("same"), still("same", 2)]), r"level 'same': two levels"),
        (lambda: Schedule([loss_level("x", "a"), loss_level("y", "a.w")]), r"level 'y': .* 'a.w' belong to 'x' too"),
        (lambda: Schedule([loss_level("x", "a.w"), loss_level("y", "")]), r"level 'y': .* '' belong to 'x' too"),
        (lambda: loss_level("x", "a.v"), r"level 'x': no parameter at 'a.v'"),
        (lambda: Schedule([still("x", needs=("y",))]), r"level 'y': there is none"),
        (lambda: Schedule([still("x", needs=("y",)), still("y", 2)]), r"level 'x' needs 'y', which is slower"),
        (lambda: Schedule([still("x", 2, sees=("y",)), still("y")]), r"level 'x' sees 'y', which is faster"),
        (
            lambda: Schedule([still("x", needs=("y",)), still("y", needs=("x",))]),
            r"level 'x' needs its own state: x → y",
        ),
        (
            lambda: Schedule([still("x", 2, starts_from="y", start=float), still("y", 3)]),
            r"level 'x': its period 2 must divide",
        ),
        (lambda: Schedule([still("x")], has_aux=True), "has_aux=True needs a flow"),
        (lambda: from_memory("m", Architecture(2, 2, 3, 2, stack=2)), r"level 'm': stack=2 must be 1"),
        (lambda: from_memory("m", Architecture(2, 2), objective="l3"), r"level 'm': objective='l3' must"),
    ],
)
def test_bad_levels_name_the_level(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_paths_with_one_beginning_do_not_overlap():
    Schedule([loss_level("x", "a"), loss_level("y", "ab")])
    assert list(select_leaves({"a": {"w": 1}, "ab": 2}, ("a",))) == ["a.w"]


def test_bad_data_name_the_level():
    schedule = Schedule([still("fast"), still("slow", 4)])
    one = {"fast": jnp.ones(()), "slow": jnp.ones(())}
    state = schedule.init(None, one)

    def data(fast, slow):
        return {"fast": jnp.ones(fast), "slow": jnp.ones(slow)}

    for call, message in [
        (lambda: schedule.run(state, data(6, 6)), r"level 'slow': period 4 does not divide 0 \+ 6 steps"),
        (lambda: schedule.run(state, data(8, 4)), r"level 'slow': context of 4 steps, where the first one has 8"),
        (lambda: schedule.run(state, one), r"level 'fast': context of 0 steps"),
        (lambda: schedule.run(state, data(0, 0)), r"level 'fast': context of 0 steps"),
        (lambda: schedule.run(state, data(4, 4), start=2, open_end=True), r"level 'slow': start=2, but .* at step 0"),
        (lambda: schedule.init(None, {"fast": jnp.ones(())}), r"level 'slow' gets no context"),
        (lambda: schedule.init(None, {**one, "third": 1.0}), r"level 'third': there is none"),
        (lambda: schedule.init(None, one, {"slow": 1.0}), r"level 'slow' has no start function"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    growing = Level("grows", 1, lambda key, data: jnp.zeros(1), lambda s, c: jnp.concatenate([s, c]))
    schedule = Schedule([growing])
    state = schedule.init(None, {"grows": jnp.ones(())})
    with pytest.raises(
        ValueError, match=r"level 'grows': an update turns its state from float32\[1\] into float32\[2\]"
    ):
        schedule.step(state, {"grows": jnp.ones(())})


# Devices.


def on_devices(count):
    """A batch of streams, split over devices; parameters shared by them."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    memory = from_memory("memory", Architecture(4, 4, hidden=8, depth=2), period=4, batch=(8,), eta=0.5)

    def loss(p, x):
        return jnp.mean((jnp.tanh(x @ p["fast"]) @ p["slow"] - x) ** 2)

    gradients = by_backpropagation(loss, ["fast", "slow"])

    def flow(read, x):
        return gradients(read, x) | {"memory": Pair(x @ read("slow"), x)}

    levels = [
        memory,
        from_optax("fast", optax.adam(1e-2), jnp.eye(4)),
        from_optax("slow", optax.adam(1e-2), jnp.eye(4), period=8),
    ]
    schedule = Schedule(levels, flow)
    xs = jax.device_put(jnp.asarray(normal(16, 8, 4), jnp.float32), split)
    state = jax.jit(lambda key, x: schedule.init(key, x))(jax.random.key(0), xs[0])
    state = jax.jit(schedule.run)(state, xs)
    state = jax.jit(schedule.step)(state, xs[0])
    devices = len(state.levels["memory"].delta_w[0].sharding.device_set)
    return {"devices": devices, "leaves": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]}


def test_eight_devices_give_the_state_of_one():
    """In a process of its own, since the number of devices is fixed when jax starts."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    report = json.loads(subprocess.run([sys.executable, __file__], env=environment, stdout=-1, check=True).stdout)
    assert (report["one"]["devices"], report["eight"]["devices"]) == (1, 8)
    for one, eight in zip(report["one"]["leaves"], report["eight"]["leaves"], strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)


def test_import_asks_for_no_devices():
    code = "import jax, nl_jax; jax.config.update('jax_num_cpu_devices', 3); assert len(jax.devices()) == 3"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


if __name__ == "__main__":
    print(json.dumps({"one": on_devices(1), "eight": on_devices(8)}))
