"""Every argument that an optimizer checks, at the ends of its range and beyond."""

import contextlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import run, tree

from nl_jax import optim

# by module: a factory for each checked argument, and what its range is; integers have no upper end
BOUNDS = {
    "m3": {
        "periods": (lambda x: optim.m3(0.1, periods=(x,)), 1, None),
        **{b: (lambda x, b=b: optim.m3(0.1, periods=(2,), **{b: x}), 0, 1) for b in ("b1", "b2", "b3")},
        **{b: (lambda x, b=b: optim.m3(0.1, **{b: x}), 0, 1) for b in ("adam_b1", "adam_b2")},
    },
    "delta_momentum": {
        "decay": (lambda x: optim.delta_momentum(0.1, x), 0, 1),
        "strength": (lambda x: optim.delta_momentum(0.1, strength=x), 0, np.inf),
    },
    "deep_momentum": {
        "hidden": (lambda x: optim.deep_momentum(0.1, hidden=(x,)), 1, None),
        "retention": (lambda x: optim.deep_momentum(0.1, hidden=(1,), retention=x), 0, 1),
    },
    "preconditioned_momentum": {
        "decay": (
            lambda x: optim.preconditioned_momentum(0.1, x, preconditioner=optim.identity_preconditioner(x)),
            0,
            1,
        ),
        "inner_steps": (
            lambda x: optim.preconditioned_momentum(0.1, preconditioner=optim.identity_preconditioner(0.9, x)),
            1,
            None,
        ),
        "inner_steps of orthogonality_preconditioner": (
            lambda x: optim.preconditioned_momentum(0.1, preconditioner=optim.orthogonality_preconditioner(x)),
            1,
            None,
        ),
        "inner_rate": (
            lambda x: optim.preconditioned_momentum(
                0.1, preconditioner=optim.orthogonality_preconditioner(inner_rate=x)
            ),
            0,
            1,
        ),
    },
    "feature_momentum": {"decay": (lambda x: optim.feature_momentum(0.1, x), 0, 1)},
    "generalized_gradient_descent": {
        "history": (lambda x: optim.generalized_gradient_descent(0.1, history=x), 1, None),
    },
    "solvers": {
        "steps": (lambda x: optim.generalized_gradient_descent(0.1, solver=optim.newton(x)), 1, None),
        "steps of gradient_descent": (
            lambda x: optim.generalized_gradient_descent(0.1, solver=optim.gradient_descent(0.5, x)),
            1,
            None,
        ),
        "iterations": (lambda x: optim.generalized_gradient_descent(0.1, solver=optim.conjugate_gradient(x)), 1, None),
    },
    "classical_memories": {
        f"decay of {name}": (lambda x, make=make: optim.generalized_momentum(0.1, *make(x)), 0, 1)
        for name, make in {
            "momentum": optim.momentum_memories,
            "adam, first": lambda x: optim.adam_memories(b1=x),
            "adam, second": lambda x: optim.adam_memories(b2=x),
            "rmsprop": optim.rmsprop_memories,
        }.items()
    }
    | {"decay": (lambda x: optim.generalized_momentum(0.1, *optim.muon_memories(x)), 0, 1)},
    "multi_frequency": {
        "period": (
            lambda x: optim.multi_frequency(
                {"all": (optax.sgd(optim.schedule_of_updates(lambda count: 0.1, x)), x)}, lambda params: "all"
            ),
            1,
            None,
        ),
    },
}
CHECKED = [(module, name) for module, arguments in BOUNDS.items() for name in arguments]


def test_every_checked_argument_is_in_the_table():
    for path in pathlib.Path(optim.__path__[0]).glob("*.py"):
        names = set(re.findall(r"check_(?:range|integer)\(\"(\w+)\"", path.read_text()))
        assert names <= set(BOUNDS.get(path.stem, ())), path.stem


@pytest.mark.parametrize(("module", "name"), CHECKED)
def test_ends_of_ranges(module, name):
    """At both ends: parameters that stay finite, no step left out, or an error when it is made; errors beyond."""
    make, low, high = BOUNDS[module][name]
    params = tree(0) if module != "classical_memories" else {"kernel": tree(0)["kernel"]}
    for end in (low, high):
        if end is None:
            continue
        end = float(end) if high is not None else end
        tx = None
        with contextlib.suppress(ValueError):
            tx = make(end)
        if tx is None:
            assert end == high  # only the upper end may be open
            continue
        zero = jax.tree.map(jnp.zeros_like, params)
        moved, state = run(tx, params, [zero, tree(1), tree(2), zero, tree(3)] if len(params) > 1 else [params] * 3)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((moved, state)))
        assert optax.tree.get(state, "total_notfinite", 0) == 0
    outside = [low - 1, np.nan, True, np.True_] + ([] if high in (None, np.inf) else [high + 1e-6])
    for value in outside + ([1.5, None, "2"] if high is None else []):
        with pytest.raises(ValueError, match=r"expected|needs"):
            make(value)
