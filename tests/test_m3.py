import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core
from optimizer_cases import SHAPES, SmallModel, compare, per_matrix, random_gradients, random_tree, run

from nl_jax.optim import hidden_matrices, m3, newton_schulz, scale_by_m3


def orthogonalized(m):
    """Muon's quintic, matrix by matrix."""
    out = np.empty_like(m)
    for x, y in zip(per_matrix(m), per_matrix(out), strict=True):
        flip = x.shape[0] > x.shape[1]
        z = x.T if flip else x
        z = z / (np.linalg.norm(z) + 1e-8)
        for _ in range(5):
            a = z @ z.T
            z = 3.4445 * z + (-4.7750 * a + 2.0315 * a @ a) @ z
        y[...] = z.T if flip else z
    return out


def reference(
    lr,
    periods=(16,),
    b1=0.95,
    b2=0.95,
    b3=0.9,
    alpha=0.2,
    accumulate="ema",
    denominator="normalized",
    nesterov=True,
    decay=0.0,
):
    """Algorithm 1 with a buffer for the period's gradients, and AdamW."""

    def matrix(w):
        m1, v, o2 = 0 * w, 0 * w, [0 * w for _ in periods]
        m2, past = [0 * w for _ in periods], []
        g, t = (yield), 0
        while True:
            t, past = t + 1, [*past, g]
            if accumulate == "ema":
                m1, v = b1 * m1 + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                v_hat = v / (1 - b2**t)
            else:
                m1, v = m1 + b1 * g, v + b2 * g**2
                v_hat = v
            once_more = b1 * m1 + (1 - b1) * g if accumulate == "ema" else m1 + b1 * g
            o = orthogonalized(once_more if nesterov else m1) + alpha * sum(o2, 0 * w)
            if denominator == "printed":
                o = o / (np.sqrt(v_hat) + 1e-8)
            else:
                r = np.sqrt(np.mean(v_hat, axis=(-2, -1), keepdims=True)) + 1e-8
                o = o * r / (np.sqrt(v_hat) + r)
            w = w - lr * (o + decay * w)
            for i, period in enumerate(periods):
                if t % period == 0:
                    total = sum(past[-period:])
                    m2[i] = b3 * m2[i] + (1 - b3) * total if accumulate == "ema" else m2[i] + b3 * total
                    o2[i] = orthogonalized(m2[i])
            g = yield w

    def adamw(w):
        m, v = 0 * w, 0 * w
        g, t = (yield), 0
        while True:
            t += 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * w)
            g = yield w

    return lambda w: matrix(w) if w.ndim > 1 else adamw(w)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"periods": (3,), "alpha": 0.7, "b1": 0.8, "b3": 0.5},
        {"periods": (2, 5), "denominator": "printed", "nesterov": False},
        {"periods": (4,), "accumulate": "sum", "denominator": "printed"},
        {"periods": ()},
    ],
    ids=str,
)
def test_equals_algorithm_1(options):
    compare(m3(0.02, weight_decay=0.1, **options), reference(0.02, decay=0.1, **options), rtol=1e-8)


def test_the_slow_memory_is_orthogonalised_only_when_due():
    """One conditional holds its products; those outside belong to the fast memory, as without slow memories."""

    def products(jaxpr):
        return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) + sum(
            products(inner)
            for eqn in jaxpr.eqns
            if eqn.primitive.name not in ("cond",)
            for inner in core.jaxprs_in_params(eqn.params)
        )

    def count(periods):
        tx, w = scale_by_m3(periods=periods), jnp.ones((8, 4))
        return products(jax.make_jaxpr(tx.update)(w, tx.init(w)).jaxpr)

    assert count((4, 8)) == count(()) > 0


def test_state_is_16_bytes_per_matrix_parameter():
    w = jnp.ones((64, 32))
    state = m3(0.1).init({"w": w})
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert 16 * w.size <= size <= 16 * w.size + 64
    assert sum(x.nbytes for x in jax.tree.leaves(m3(0.1, periods=(4, 16)).init({"w": w}))) <= 24 * w.size + 64


def test_only_hidden_matrices():
    params = {
        "embed": {"embedding": jnp.ones((4, 2))},
        "token_embedding": jnp.ones((4, 2)),
        "blocks": {"kernel": jnp.ones((3, 4, 2)), "bias": jnp.ones((3, 2)), "norm": {"scale": jnp.ones((3, 2))}},
        "heads_mixing": {"kernel": jnp.ones((2, 2))},
        "lm_head": {"kernel": jnp.ones((2, 4))},
        "gain": jnp.ones(()),
    }
    chosen = [jax.tree_util.keystr(p) for p, v in jax.tree_util.tree_leaves_with_path(hidden_matrices(params)) if v]
    assert chosen == ["['blocks']['kernel']", "['heads_mixing']['kernel']"]


def test_the_choice_of_matrices_is_the_callers():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    for matrices in ({"a": False, "b": True}, lambda params: {"a": False, "b": True}):
        state = m3(0.1, matrices=matrices).init(params)
        fast = optax.tree.get(state, "fast")
        assert isinstance(fast["a"], optax.MaskedNode)
        assert fast["b"].shape == (2, 2)


def test_does_not_depend_on_the_scale_of_gradients():
    with jax.enable_x64(True):
        params, gradients = random_tree(0), random_gradients(20)
        small = [jax.tree.map(lambda g: 1e-3 * g, g) for g in gradients]
        a, b = (run(m3(0.1, periods=(4,)), params, g)[0][-1] for g in (gradients, small))
        for name in SHAPES:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3)


def test_newton_schulz_of_a_vector():
    with pytest.raises(ValueError, match=r"x has shape \(3,\)"):
        newton_schulz(jnp.ones(3))


def test_trains_a_model():
    losses = SmallModel().train(m3(0.03), 150)[0]
    assert losses[-20:].mean() < 0.75 * losses[:5].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periods": (0,)}, r"periods=\(0,\)"),
        ({"periods": (2.5,)}, r"periods=\(2.5,\)"),
        ({"b1": 1.5}, "b1=1.5"),
        ({"accumulate": "mean"}, "accumulate='mean'"),
        ({"denominator": "none"}, "denominator='none'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        m3(0.1, **options)
