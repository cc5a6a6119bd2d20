"""Schedules: every form of running one is the plain loop, and costs what the timeline says."""

import collections

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from level_cases import assert_close, assert_own_buffers, levels_that_share, normal, scanned, still

from nl_jax import Level, Schedule
from nl_jax.costs import count_flops
from nl_jax.levels import Pair, by_backpropagation, from_loss, from_memory, from_optax
from nl_jax.memory import Architecture

SIZE = 3


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


@settings(max_examples=10, deadline=None, derandomize=True)
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


def test_bad_data_name_the_level():
    schedule = Schedule([still("fast"), still("slow", 4)])
    one = {"fast": jnp.ones(()), "slow": jnp.ones(())}
    state = schedule.init(None, one)

    def data(fast, slow):
        return {"fast": jnp.ones(fast), "slow": jnp.ones(slow)}

    for call, message in [
        (lambda: schedule.run(state, data(6, 6)), r"level 'slow': period 4 does not divide 0 \+ 6 steps"),
        (lambda: schedule.run(state, data(8, 4)), r"level 'slow': context of 4 steps; expected the 8 of the first one"),
        (lambda: schedule.run(state, one), r"level 'fast': context of 0 steps"),
        (lambda: schedule.run(state, data(0, 0)), r"level 'fast': context of 0 steps"),
        (lambda: schedule.run(state, data(4, 4), start=2, open_end=True), r"level 'slow': start=2, but .* at step 0"),
        (lambda: schedule.init(None, {"fast": jnp.ones(())}), r"level 'slow' gets no context"),
        (lambda: schedule.init(None, {**one, "third": 1.0}), r"level 'third': unknown"),
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


def test_a_large_state_that_changes_its_shape_is_shown_in_part():
    def grow(state, context):
        return state | {"p70": jnp.ones(2)}

    schedule = Schedule([Level("grows", 1, lambda key, data: {f"p{i}": jnp.ones(1) for i in range(100)}, grow)])
    state = schedule.init(None, {"grows": jnp.ones(())})
    with pytest.raises(ValueError, match=r"\.\.\..*'p70': 'float32\[1\]'.* into .*'p70': 'float32\[2\]'") as error:
        schedule.step(state, {"grows": jnp.ones(())})
    assert len(str(error.value)) < 500
