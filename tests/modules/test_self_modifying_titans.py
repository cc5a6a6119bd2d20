"""Self-modifying Titans against the rule of its docstring, written out token by token in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax.modules import PAPER_FORM, SelfModifyingTitans
from nl_jax.modules.mixers.generation import generate
from nl_jax.modules.mixers.self_modifying_titans import UP_BIAS_SCALE

WIDTH, HEADS = 8, 2
apply = jax.jit(lambda mixer, x, state: mixer(x, state))


def make(float64=False, **options):
    mixer = SelfModifyingTitans(WIDTH, HEADS, rngs=nnx.Rngs(0), **{"chunk_size": 4, **options})
    if mixer.up_bias is not None:
        mixer.up_bias[...] += 0.01 * jnp.arange(HEADS)  # heads differ
    if mixer.eta is None:
        mixer.eta_bias[...] = jnp.full((HEADS,), 0.5)  # learn fast, so that mistakes show
    return jax.tree.map(lambda p: p.astype(jnp.float64), mixer) if float64 else mixer


def tokens(time, batch=2, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, time, WIDTH)).astype(dtype)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / np.sqrt(np.sum(x * x) + 1e-6)


def reference(mixer, x):
    """One sequence [time, width], one token at a time: the docstrings of the mixer and of memory/rules.py."""
    p = jax.tree.map(np.asarray, mixer)
    time, d, stack = len(x), p.head_dim, (*p.projecting.names, "memory")
    slow = np.concatenate([x @ p.query.kernel[...], x @ p.key.kernel[...], x @ p.value.kernel[...]], axis=-1)
    slow = np.concatenate([np.zeros((3, slow.shape[1])), slow])
    slow = sum(p.conv.kernel[...][i] * slow[i : i + time] for i in range(4))
    slow = slow.reshape(time, 3, HEADS, d)

    def coefficient(c, h, t, activation):
        if isinstance(c, tuple):
            return c[h]
        return activation(x[t] @ c.linear.kernel[...][:, h] + c.linear.bias[...][h])

    def softplus(u):
        return np.log1p(np.exp(u))

    rule, objective = p.groups[-1].rule, p.groups[-1].objective
    paper, delta = rule.form == "paper", float(rule.delta)
    c = objective.linear  # 2 for L2, 0 for the dot product
    y = np.zeros((time, HEADS, d))
    for h in range(HEADS):
        initial = {}
        for memory, group in zip(p.groups, p.memories, strict=True):
            architecture = memory.architecture
            outputs, first = architecture.first_outputs, 0 if group is not p.memories[-1] else len(p.projecting.names)
            for i in range(architecture.stack):
                inner = group.layers[0][...][h, :, i * outputs : (i + 1) * outputs].T
                initial[stack[first + i]] = (inner, group.layers[1][...][h, i].T)
        weights = dict(initial)
        momentum = {name: (0.0, 0.0) for name in stack}
        boundary = dict(initial)
        chunk = dict.fromkeys(stack, p.chunking.sizes[0]) | {"memory": p.chunking.sizes[-1]}
        keep = 1.0 if p.pulls_to_initial else 0.0
        excess = dict.fromkeys(stack, 0.0)

        def features(pre, c):
            """Of the last layer, and their derivative by the first layer's outputs, [hidden, outputs]."""
            gated = p.groups[0].architecture.gated
            hidden = len(pre) // 2 if gated else len(pre)
            gate, up = pre[:hidden], pre[hidden:] + c if gated else np.ones(hidden)
            silu, slope = gate * sigmoid(gate), sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)))
            derivative = np.diag(slope * up)
            return silu * up, np.hstack([derivative, np.diag(silu)]) if gated else derivative

        def answer(pair, u, c=0.0):
            return u + pair[1] @ features(pair[0] @ u, c)[0]

        up_bias = dict.fromkeys(stack, 0.0)
        if p.up_bias is not None:
            up_bias["memory"] = UP_BIAS_SCALE * p.up_bias[...][h]

        for t in range(time):
            for name in stack:
                if t % chunk[name] == 0:
                    scale = np.exp(-4.0 * max(0.0, excess[name]))
                    start = [keep * w for w in initial[name]]
                    weights[name] = tuple(s + scale * (w - s) for w, s in zip(weights[name], start, strict=True))
                    boundary[name], excess[name] = weights[name], 0.0
            q, u_key, u_value = (unit(u) for u in slow[t, :, h])
            k = unit(answer(boundary["key"], u_key)) if "key" in stack else u_key
            v = unit(answer(boundary["value"], u_value)) if "value" in stack else u_value
            q = unit(answer(boundary["query"], q)) if "query" in stack else q
            if "eta" in stack:
                eta = softplus(unit(answer(boundary["eta"], u_key)) @ p.eta_read[...][h] + p.eta_bias[...][h])
            else:
                eta = coefficient(p.eta, h, t, softplus)
            if "alpha" in stack:
                alpha = sigmoid(unit(answer(boundary["alpha"], u_key)) @ p.alpha_read[...][h] + p.alpha_bias[...][h])
            else:
                signed = getattr(p.alpha, "activation", None) == "hard_tanh"
                alpha = coefficient(p.alpha, h, t, (lambda u: np.clip(u, -1, 1)) if signed else sigmoid)
            mu = 0.0 if p.mu is None else coefficient(p.mu, h, t, sigmoid)
            damp = 1.0 if paper else 1.0 - mu
            new = {}
            for i, name in enumerate(stack):
                reflect = 2.0 if rule.allow_neg_eigval and name == "memory" else 1.0
                gate = 1.0 if p.memory_gates is None else sigmoid(p.memory_gates[...][h, i])
                inner, outer = boundary[name]
                z, derivative = features(inner @ k, up_bias[name])
                target = unit(answer(boundary[name], v, up_bias[name])) if p.self_targets else v
                e = 2 * (k + outer @ z - target) if c else -target
                g = derivative.T @ (outer.T @ e)
                learned = (outer - keep * initial[name][1]) @ z
                if rule.shrinkage:
                    part = gate * eta / (1 + eta) * (learned @ e) / (learned @ learned + e @ e + 0.01)
                    excess[name] += part / chunk[name]
                (w2, w1), (s2, s1), (i2, i1) = weights[name], momentum[name], initial[name]
                i2, i1 = keep * i2, keep * i1
                if paper:
                    s2, s1 = mu * s2 - eta * np.outer(g, k), mu * s1 - eta * np.outer(e, z)
                    w2 = i2 + alpha * (w2 - i2) - delta * eta * np.outer((w2 - i2) @ k, k) + s2
                    w1 = i1 + alpha * (w1 - i1) - delta * eta * np.outer((w1 - i1) @ z, z) + s1
                else:
                    curvature = max(c, 1) * (g @ g * (k @ k) + e @ e * (z @ z)) / (e @ e + 1e-6)
                    step = eta / (1 + eta * chunk[name] * (delta * k @ k + curvature))
                    s2 = mu * s2 - gate * damp * step * np.outer(g, k)
                    rate = delta * eta / (1 + delta * eta * k @ k)
                    w2 = i2 + alpha * (w2 - i2) - rate * np.outer((w2 - i2) @ k, k) + s2
                    rate = reflect * eta / (1 + (c + delta) * eta * z @ z)
                    s1 = mu * s1 - gate * damp * rate * np.outer(2 * (k + i1 @ z - target) if c else -target, z)
                    w1 = i1 + alpha * (w1 - i1) - (c + delta) * rate * np.outer((w1 - i1) @ z, z) + s1
                new[name], momentum[name] = (w2, w1), (s2, s1)
            weights = new
            y[t, h] = answer((weights if p.read == "token" else boundary)["memory"], q, up_bias["memory"])
    y = y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6) * p.output_norm.scale[...]
    return y.reshape(time, -1) @ p.output.kernel[...]


def check(mixer):
    x = tokens(13, dtype=jnp.float64)
    y, _ = apply(mixer, x, None)
    for row, expected in zip(np.asarray(y), [reference(mixer, row) for row in np.asarray(x)], strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("read", ["token", "boundary"])
@pytest.mark.parametrize(("chunk", "projections"), [(1, 1), (4, 4), (2, 6), (6, 2), (16, 16)])
def test_equals_the_rule_written_out(chunk, projections, read):
    with jax.enable_x64(True):
        check(make(float64=True, chunk_size=chunk, projection_chunk_size=projections, read=read))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("options", [{}, {"momentum": False}, {"retention": "initial", "read": "token"}], ids=str)
def test_paper_rule_is_the_papers(chunk, options):
    """At chunk size 1 the recurrence of Eq. 83-88, at larger ones that of Eq. 90, both written out plainly."""
    with jax.enable_x64(True):
        mixer = make(float64=True, chunk_size=chunk, **PAPER_FORM | options)
        mixer.eta_bias[...] = jnp.full((HEADS,), -4.0)  # it diverges with larger steps
        check(mixer)


# Table 6, and what else can be switched: each equals the reference with the same switch, so it changes nothing else
SWITCHES = [
    {"delta": True},
    {"momentum": True},
    {"self_targets": True},
    {**PAPER_FORM, "rule": "implicit"},
    {"alpha": 1.0},
    {"adaptive": ("value", "eta", "alpha")},
    {"adaptive": ("key", "eta", "alpha")},
    {"adaptive": ("key", "value")},
    {"adaptive": ()},
    {"adaptive": ("key", "value", "query", "eta", "alpha")},
    {"objective": "dot_product"},
    {"objective": "dot_product", "alpha": ("hard_tanh", 0.0)},
    {"retention": "zero"},
    {"gated": False},
    {"up_bias": 0.0},
    {"memory_gates": False},
    {"allow_neg_eigval": True},
    {"shrinkage": False},
]


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_switches(options):
    with jax.enable_x64(True):
        mixer = make(float64=True, **options)
        check(mixer)
        x = tokens(13, dtype=jnp.float64)
        assert float(jnp.max(jnp.abs(apply(mixer, x, None)[0] - apply(make(float64=True), x, None)[0]))) > 1e-4


def test_frozen_has_the_same_parameters_and_never_learns():
    mixer, x = make(frozen=True, momentum=True), tokens(12)
    assert jax.tree.map(jnp.shape, nnx.state(mixer)) == jax.tree.map(jnp.shape, nnx.state(make(momentum=True)))
    _, state = apply(mixer, x, None)
    for learned in (state.momentum, state.delta_w):
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(learned)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"adaptive": ("key", "query", "alpha")}, {"retention": "zero"}], ids=str)
def test_frozen_is_what_a_rate_of_zero_gives(options):
    """In outputs and gradients: the control is the same program, only quicker."""
    frozen, still, x = make(frozen=True, **options), make(**options), tokens(12)
    if still.eta is None:
        still.eta_bias[...] = jnp.full((HEADS,), -1e9)  # softplus: 0
        still.eta_read[...] = jnp.zeros_like(still.eta_read[...])
    else:
        still.eta.linear.bias[...] = jnp.full((HEADS,), -1e9)
        still.eta.linear.kernel[...] = jnp.zeros_like(still.eta.linear.kernel[...])
    loss = jax.jit(jax.grad(lambda mixer: jnp.sum(jnp.sin(mixer(x)[0]))))
    np.testing.assert_allclose(apply(frozen, x, None)[0], apply(still, x, None)[0], atol=1e-6)
    for name in ("key", "value", "query", "conv", "memories", "output"):
        a, b = (jax.tree.leaves(getattr(loss(mixer), name)) for mixer in (frozen, still))
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u, v, atol=1e-5)


@pytest.mark.parametrize(
    ("chunk", "projections"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(4, 4, marks=pytest.mark.slow),
        (4, 8),
        pytest.param(8, 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "split",
    [
        pytest.param((1,) * 14, marks=pytest.mark.slow),
        pytest.param((5, 9), marks=pytest.mark.slow),
        pytest.param((9, 5), marks=pytest.mark.slow),
        (1, 5, 3, 5),
    ],
)
def test_any_split_gives_the_same(chunk, projections, split):
    mixer = make(chunk_size=chunk, projection_chunk_size=projections)
    x = tokens(14)
    whole = apply(mixer, x, None)
    state, parts = mixer.init_state(2), []
    for part in jnp.split(x, np.cumsum(split)[:-1], axis=1):
        y, state = apply(mixer, part, state)
        parts.append(y)
    parted = jnp.concatenate(parts, axis=1), state
    for a, b in zip(jax.tree.leaves(parted), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_gradients_are_exact_through_the_inner_updates(chunk):
    with jax.enable_x64(True):
        mixer, x = make(float64=True, chunk_size=chunk), tokens(9, batch=1, dtype=jnp.float64)
        loss = jax.jit(lambda mixer: jnp.sum(jnp.sin(mixer(x)[0])))
        gradient = jax.jit(jax.grad(loss))(mixer)
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), mixer)
        step = 2e-6
        ahead, behind = (loss(jax.tree.map(lambda p, d, s=s: p + s * step * d, mixer, direction)) for s in (1, -1))
        along = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        assert along == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)
        # every parameter matters, the initial weights of every memory and the slow ones
        assert all(float(jnp.max(jnp.abs(g))) > 1e-8 for g in jax.tree.leaves(gradient))
        for group in gradient.memories:
            assert float(jnp.min(jnp.max(jnp.abs(group.layers[1][...]), axis=(2, 3)))) > 1e-8


@pytest.mark.slow
def test_gradients_stay_small_where_eigenvalues_reach_minus_one():
    """With such eigenvalues in the memories that make keys and rates, too, it was 1e10 (parity at chunk size 1)."""
    options = {"allow_neg_eigval": True, "delta": True, "eta": ("softplus", 20.0)}
    mixer = SelfModifyingTitans(64, 2, chunk_size=1, rngs=nnx.Rngs(0), **options)
    x = jax.random.normal(jax.random.key(1), (8, 100, 64))
    gradient = jax.jit(jax.grad(lambda mixer: jnp.mean(jnp.square(mixer(x)[0]))))(mixer)
    assert float(optax.tree.norm(gradient)) < 10.0


def test_memory_learns_in_context():
    mixer = make()
    _, state = apply(mixer, tokens(12), None)
    assert all(float(jnp.max(jnp.abs(leaf))) > 1e-3 for leaf in jax.tree.leaves(state.delta_w))


def test_a_memory_that_makes_its_own_rate_cannot_run_away():
    """Once it could: a large answer made η large, which made the next answer larger (parity, NaN after 222 steps)."""
    mixer, x = make(), tokens(12)
    inputs, _ = mixer.project(x, mixer.conv.init_state(2))
    grown = jax.tree.map(lambda w: jnp.broadcast_to(1e6 * w, (2, *w.shape)), mixer.initial_weights())
    eta = generate(mixer.projecting, mixer.groups, mixer.read_only(2), grown, inputs, self_targets=False).eta
    top = jax.nn.softplus(jnp.linalg.norm(mixer.eta_read[...], axis=-1) + mixer.eta_bias[...])
    assert bool(jnp.all(eta <= top[:, None]))


def test_state_size_does_not_grow():
    mixer = make()
    shapes = [jax.tree.map(jnp.shape, apply(mixer, tokens(time), None)[1]) for time in (3, 50)]
    assert shapes[0] == shapes[1] == jax.tree.map(jnp.shape, mixer.init_state(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads=3: expected a divisor of width=8"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": 4, "projection_chunk_size": 6}, r"chunk_size=\(6, 4\)"),
        ({"read": "other"}, "read='other'"),
        ({"up_bias": float("nan")}, "up_bias=nan: expected a finite number"),
        ({"eta_bias": float("inf")}, "eta_bias=inf: expected a finite number"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SelfModifyingTitans(**{"width": WIDTH, "num_heads": HEADS, "rngs": nnx.Rngs(0), **options})
