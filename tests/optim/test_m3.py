import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend import core
from optimizer_cases import SHAPES, SmallModel, compare, per_matrix, random_gradients, random_tree, run

from nl_jax.models import MODEL_NAMES, LanguageModel, named_config
from nl_jax.optim import describe_matrices, m3, newton_schulz, parameter_roles, scale_by_m3
from nl_jax.training import decay_mask
from nl_jax.trees import named_leaves


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
            if denominator == "paper":
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
        {"periods": (2, 5), "denominator": "paper", "nesterov": False},
        {"periods": (4,), "accumulate": "sum", "denominator": "paper"},
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


D = optax.contrib.MuonDimensionNumbers


@pytest.mark.parametrize(
    ("shape", "dimensions", "flat"),
    [
        ((3, 3, 4, 5), None, (36, 5)),  # a convolution, by the default
        ((6, 2, 4), D(0, (1, 2)), (6, 8)),  # attention's query, key and value
        ((2, 4, 6), D((0, 1), -1), (8, 6)),  # its output
    ],
)
def test_axes_that_form_the_matrix(shape, dimensions, flat):
    """Every step is that of the reshaped parameter."""
    rng = np.random.default_rng(0)
    w, *gradients = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(6))
    matrices = None if dimensions is None else {"w": dimensions}
    got, state = run(m3(0.1, periods=(2,), matrices=matrices), {"w": w}, [{"w": g} for g in gradients])
    assert optax.tree.get(state, "fast")["w"].shape == shape
    tx = m3(0.1, periods=(2,), matrices=True)
    expected, _ = run(tx, w.reshape(flat), [g.reshape(flat) for g in gradients])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a["w"], b.reshape(shape), atol=1e-5)


def test_stacks_behind_the_matrix_and_transposed_matrices():
    """[out, in, stack] is the transposed stack [stack, in, out]."""
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    got = newton_schulz(jnp.asarray(x), dimensions=D((1,), (0,)))
    np.testing.assert_allclose(got, newton_schulz(jnp.asarray(x.T)).T, atol=1e-5)


@pytest.mark.parametrize(
    "dimensions", [D(0, 2), D(0, 0), D((), 1), D((0, 1), (-1,)), D(-3, 1)], ids=lambda d: f"{d[0]}, {d[1]}"
)
def test_axes_that_are_not_there(dimensions):
    with pytest.raises(ValueError, match=r"'w' with 2 axes: .* must name axes"):
        m3(0.1, matrices={"w": dimensions}).init({"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"'w' with 0 axes"):
        m3(0.1, matrices=True).init({"w": jnp.ones(())})


def chosen(params, matrices=None):
    """Names of the parameters that M3 takes for matrices."""
    fast = optax.tree.get(m3(0.1, matrices=matrices).init(params), "fast")
    return {jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree_util.tree_leaves_with_path(fast)}


def test_only_hidden_matrices():
    ones = jnp.ones
    ends = {
        "embed": {"embedding": ones((4, 2))},
        "token_embedding": ones((4, 2)),
        "wte": ones((4, 2)),
        "transformer": {"wpe": {"weight": ones((4, 2))}},
        "lm_head": {"kernel": ones((2, 4))},
        "LMHead": {"kernel": ones((2, 4))},
        "LMHead_0": {"kernel": ones((2, 4))},
        "classifier": ones((2, 4)),
        "readout": {"kernel": ones((8, 100))},  # by the size that no other matrix has
    }
    vectors = {
        "norm": {"scale": ones((3, 2))},
        "RMSNorm_0": {"weight": ones((3, 2))},
        "ln_1": {"weight": ones((3, 2))},
        "stack": {"bias": ones((3, 2)), "b": ones((3, 2))},
        "gain": ones(()),
    }
    hidden = {
        "blocks": {"kernel": ones((3, 4, 2)), "up": ones((8, 32)), "down": ones((32, 8))},
        "heads_mixing": {"kernel": ones((2, 2))},
        "head_proj": {"kernel": ones((2, 2))},
        "b_proj": ones((2, 2)),
        "bias_free": {"kernel": ones((2, 2))},
        "lora_a": ones((64, 4)),
        "lora_b": ones((4, 64)),
        "scaled": {"w": ones((8, 8))},
    }
    expected = chosen({"hidden": hidden}, lambda params: True)
    assert len(expected) == len(jax.tree.leaves(hidden))
    assert chosen({"ends": ends, "vectors": vectors, "hidden": hidden}) == expected
    kinds = parameter_roles({"ends": ends, "vectors": vectors, "hidden": hidden})
    for name, kind in (("ends", "end"), ("vectors", "vector"), ("hidden", "matrix")):
        assert {role.kind for role in jax.tree.leaves(kinds[name])} == {kind}, describe_matrices(ends | vectors)


MATRICES = (
    r"mixer\.(query|key|value|output|gates|recurrent|(eta|alpha|mu)\.linear)\.kernel|(gate|up|down)\.kernel"
    r"|mixer\.(attention|memory)\.(query|key|value|output|(eta|alpha)\.linear)\.kernel|memories\.\d\.layers\.\d"
)


@pytest.mark.parametrize("variant", ["sequential", "independent"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_parameter_of_our_models_is_chosen_by_the_table(name, variant):
    """M3 and weight decay: convolutions, gates, norms and vectors of each head are no matrices; an embedding decays."""
    sizes = {"width": 16, "num_heads": 2, "mlp_hidden": 8, "cms_variant": variant}
    model = jax.eval_shape(lambda: LanguageModel(named_config(name, "tiny", **sizes), rngs=nnx.Rngs(0)))
    roles, decayed = named_leaves(parameter_roles(model)), named_leaves(decay_mask(model))
    for path in named_leaves(model):
        assert roles[path].reason.startswith("table")
        is_matrix = re.search(MATRICES, path) is not None
        assert (roles[path].kind == "matrix") == is_matrix, path
        assert decayed[path] == (is_matrix or path == "embed.embedding"), path


def test_a_block_alone_is_chosen_by_the_table():
    def first_block():
        model = LanguageModel(named_config("hope", "tiny", width=16, num_heads=2, mlp_hidden=8), rngs=nnx.Rngs(0))
        return {"layers": [jax.tree.map(lambda x: x[0], model.blocks)]}

    roles = named_leaves(parameter_roles(jax.eval_shape(first_block)))
    assert {path: role.kind == "matrix" for path, role in roles.items()} == {
        path: re.search(MATRICES, path) is not None for path in roles
    }


def test_the_choice_of_matrices_is_the_callers():
    params = {"a": jnp.ones((2, 2)), "b": {"c": jnp.ones((2, 2)), "d": jnp.ones((2, 2))}}
    b = {"c": True, "d": True}
    for matrices in ({"a": False, "b": b}, {"a": None, "b": True}, {"a": None, "b": D(1, 0)}):
        assert chosen(params, matrices) == chosen(params, lambda params, m=matrices: m) == {"b.c", "b.d"}


def test_the_choice_can_be_seen():
    params = {"conv": jnp.ones((3, 3, 4, 8)), "q": jnp.ones((16, 4, 4)), "scale": jnp.ones((2, 4))}
    text = describe_matrices(params).splitlines()
    for line, words in zip(text, ("1 matrix 36 × 8", "16 matrices 4 × 4", "AdamW"), strict=True):
        assert words in line
        assert "guess" in line
    text = describe_matrices(params, {"conv": None, "q": D(0, (1, 2)), "scale": None}).splitlines()
    for line, words in zip(text, ("AdamW", "1 matrix 16 × 16", "AdamW"), strict=True):
        assert words in line
        assert "the caller's choice" in line


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
