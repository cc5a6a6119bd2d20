"""What the tests of optimizers share: shapes, random gradients, a real small model, and running a transformation."""

import argparse
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"matrix": (4, 3), "wide": (2, 5), "vector": (3,), "scalar": (), "stack": (2, 3, 4)}
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) > 1}


def random_tree(seed, shapes=SHAPES, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def random_gradients(steps, shapes=SHAPES):
    """One tree of gradients a step, float64, of sizes that change from step to step."""
    return [{n: np.exp(np.sin(t)) * g for n, g in random_tree(t + 1, shapes).items()} for t in range(steps)]


def run(tx, params, gradients):
    """Parameters after every step on the given gradients, and the last state."""
    step = jax.jit(tx.update)
    state, trace = tx.init(params), []
    for g in gradients:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
        trace.append(params)
    return trace, state


def compare(tx, rule, shapes=SHAPES, steps=60, rtol=1e-10):
    """Runs ``tx`` in float64 and, leaf by leaf, the NumPy generator ``rule(w)``, which takes g and yields new w."""
    with jax.enable_x64(True):
        params = random_tree(0, shapes)
        gradients = random_gradients(steps, shapes)
        trace, state = run(tx, jax.tree.map(jnp.asarray, params), gradients)
        for name, w in params.items():
            reference = rule(w)
            next(reference)
            for t, g in enumerate(gradients):
                expected = reference.send(g[name])
                np.testing.assert_allclose(trace[t][name], expected, rtol=rtol, atol=1e-12, err_msg=f"{name}, step {t}")
    return state


def per_matrix(x):
    """The matrices of a stack [..., in, out], as views."""
    return x.reshape(-1, *x.shape[-2:])


class SmallModel:
    """Predicts a byte of Python source from the three before it: embedding, stacked layers, biases, a scalar."""

    def __init__(self, dtype=jnp.float32, width=16):
        rng = np.random.default_rng(0)
        normal = lambda *shape: jnp.asarray(rng.standard_normal(shape) / shape[-2] ** 0.5, dtype)  # noqa: E731
        self.params = {
            "embed": normal(128, 8),
            "first": {"kernel": normal(24, width), "bias": jnp.zeros(width, dtype)},
            "blocks": {"kernel": normal(2, width, width), "bias": jnp.zeros((2, width), dtype)},
            "head": {"kernel": normal(width, 128)},
            "temperature": jnp.ones((), dtype),
        }
        source = inspect.getsource(argparse).encode()
        text = np.minimum(np.frombuffer(source, np.uint8), 127)
        self.windows = np.lib.stride_tricks.sliding_window_view(text, 4).astype(np.int32)

    def loss(self, params, windows):
        h = params["embed"][windows[:, :3]].reshape(len(windows), -1)
        h = jax.nn.silu(h @ params["first"]["kernel"] + params["first"]["bias"])
        for kernel, bias in zip(params["blocks"]["kernel"], params["blocks"]["bias"], strict=True):
            h = h + jax.nn.silu(h @ kernel + bias)
        logits = params["temperature"] * (h @ params["head"]["kernel"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 3]).mean()

    def batches(self, steps, size=64):
        rng = np.random.default_rng(1)
        return self.windows[rng.integers(len(self.windows), size=(steps, size))]

    def train(self, tx, steps, params=None):
        """Losses of each step's batch, parameters and state after the last."""

        def step(carry, windows):
            params, state = carry
            loss, grads = jax.value_and_grad(self.loss)(params, windows)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        params = self.params if params is None else params
        (params, state), losses = jax.jit(lambda c, b: jax.lax.scan(step, c, b))(
            (params, tx.init(params)), self.batches(steps)
        )
        return losses, params, state
