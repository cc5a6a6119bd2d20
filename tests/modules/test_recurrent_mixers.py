"""Mixers that have a rule of their own, against that rule token by token in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.modules import mixer
from nl_jax.modules.mixers import memory_part

WIDTH, HEADS, SIZE = 8, 2, 4


def make(name, **options):
    """In float64, with random vectors in the place of those that start as constants."""
    module = mixer(name, width=WIDTH, num_heads=HEADS, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(1)

    def moved(path, p):
        p = p.astype(jnp.float64)
        return p + 0.3 * rng.standard_normal(p.shape) if p.ndim < 3 else p

    return jax.tree_util.tree_map_with_path(moved, module)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / np.sqrt(np.sum(x * x, -1, keepdims=True) + 1e-6)


def projected_back(module, answers):
    """Output from the answers of each head [time, heads, head_dim]."""
    y = answers / np.sqrt(np.mean(answers * answers, -1, keepdims=True) + 1e-6) * np.asarray(module.output_norm.scale)
    return y.reshape(len(y), WIDTH) @ np.asarray(module.output.kernel)


def projected(module, x):
    tokens, _ = module.project(x, module.conv.init_state(1))
    return {name: np.moveaxis(np.asarray(u[0]), 0, 1) for name, u in tokens._asdict().items() if np.ndim(u) > 2}


def comba(module, x):
    p = projected(module, x)
    feedback, correction = sigmoid(np.asarray(module.feedback)), np.asarray(module.correction)
    W, found = np.zeros((HEADS, SIZE, SIZE)), []
    for k, v, q, beta, alpha in zip(p["key"], p["value"], p["query"], p["eta"], p["alpha"], strict=True):
        for h in range(HEADS):
            transition = alpha[h] * np.eye(SIZE) - feedback[h] * beta[h] * np.outer(k[h], k[h])
            W[h] = W[h] @ transition + beta[h] * np.outer(v[h], k[h])
        found.append([W[h] @ (q[h] - correction[h] * k[h]) for h in range(HEADS)])
    return projected_back(module, np.array(found))


def low_rank(part, x, squash):
    inner = x @ np.asarray(part.down.kernel)
    out = (np.tanh(inner) if squash else inner) @ np.asarray(part.up.kernel) + np.asarray(part.up.bias)
    return out.reshape(len(x), HEADS, SIZE)


def gla(module, x):
    p, w = projected(module, x), sigmoid(low_rank(module.retention, np.asarray(x[0]), False)) ** (1 / 16)
    S, found = np.zeros((HEADS, SIZE, SIZE)), []
    for k, v, q, w_t in zip(p["key"], p["value"], p["query"], w, strict=True):
        S = w_t[:, :, None] * S + k[:, :, None] * v[:, None, :]
        found.append(np.einsum("hk,hkv->hv", q, S))
    return projected_back(module, np.array(found))


def rwkv7(module, x):
    p, text = projected(module, x), np.asarray(x[0])
    w = np.exp(-np.exp(-0.5) * sigmoid(low_rank(module.retention, text, True)))
    a = sigmoid(low_rank(module.rate, text, False))
    scale, mix = np.asarray(module.removal_scale), np.asarray(module.write_mix)
    S, found = np.zeros((HEADS, SIZE, SIZE)), []  # [value, key], as in the paper
    for k, v, q, w_t, a_t in zip(p["key"], p["value"], p["query"], w, a, strict=True):
        kappa, write = unit(k * scale), k * (1 + (a_t - 1) * mix)
        for h in range(HEADS):
            transition = np.diag(w_t[h]) - np.outer(kappa[h], a_t[h] * kappa[h])
            S[h] = S[h] @ transition + np.outer(v[h], write[h])
        found.append(np.einsum("hvk,hk->hv", S, q))
    return projected_back(module, np.array(found))


def lstm(module, x):
    hidden, cell, found = np.zeros(WIDTH), np.zeros(WIDTH), []
    for token in np.asarray(x[0]):
        gates = token @ np.asarray(module.gates.kernel) + np.asarray(module.gates.bias)
        i, f, g, o = np.split(gates + hidden @ np.asarray(module.recurrent.kernel), 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        found.append(hidden)
    return np.array(found) @ np.asarray(module.output.kernel)


def srwm(module, x):
    inputs, _ = module.conv(module.query(x), module.conv.init_state(1))
    phi = softmax(np.asarray(inputs[0]).reshape(-1, HEADS, SIZE))
    W, found = np.array(module.memories[0].layers[0]).swapaxes(1, 2), []  # [answers, key], as in the paper
    for token in phi:
        answers = []
        for h in range(HEADS):
            y, q, k, beta = np.split(W[h] @ token[h], [SIZE, 2 * SIZE, 3 * SIZE])
            value, present = W[h] @ softmax(q), W[h] @ softmax(k)
            rates = sigmoid(np.repeat(beta, [SIZE, SIZE, SIZE, 4]))
            W[h] = W[h] + np.outer(rates * (value - present), softmax(k))
            answers.append(y)
        found.append(answers)
    return projected_back(module, np.array(found))


RULES = {"comba": comba, "gla": gla, "rwkv7": rwkv7, "lstm": lstm, "srwm": srwm}


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 16])
@pytest.mark.parametrize("name", RULES)
def test_every_token_is_read_by_the_published_rule(name, chunk):
    with jax.enable_x64(True):
        module, x = make(name, chunk_size=chunk), jax.random.normal(jax.random.key(2), (1, 21, WIDTH), jnp.float64)
        y, _ = jax.jit(lambda module, x: module(x))(module, x)
        np.testing.assert_allclose(y[0], RULES[name](module, x), rtol=1e-8, atol=1e-9)


def test_parts_of_a_hybrid_are_the_mixers_alone():
    with jax.enable_x64(True):
        module = make("sliding_window_memory", window=3)
        x = jax.random.normal(jax.random.key(2), (1, 9, WIDTH), jnp.float64)
        y, state = jax.jit(lambda module, x: module(x))(module, x)
        (seen, attention), (remembered, memory) = jax.jit(lambda m, x: (m.attention(x), m.memory(x)))(module, x)
        np.testing.assert_allclose(y, seen + remembered, rtol=1e-9)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-9), tuple(state), (attention, memory))
    assert memory_part(state) is state.memory
    assert memory_part(attention) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("comba", {"correction": float("nan")}, "correction=nan: expected a finite number"),
        ("comba", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("rwkv7", {"rank": 0}, "rank=0: expected an integer of at least 1"),
        ("gla", {"num_heads": 3}, "num_heads=3: expected a divisor of width=8"),
        ("gla", {"eta": 0.5}, "unexpected keyword argument 'eta'"),
        ("lstm", {"num_heads": 3}, "num_heads=3: expected a divisor of width=8"),
        ("lstm", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("srwm", {"chunk_size": 0}, "chunk_size=0: expected an integer of at least 1"),
        ("sliding_window_memory", {"memory": "attention"}, "memory=Attention: expected a mixer with memories"),
        ("sliding_window_memory", {"memory": "other"}, "unknown mixer 'other'"),
        ("sliding_window_memory", {"window": 0}, "context_length=0: expected at least 1"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        mixer(name, **{"width": WIDTH, "num_heads": HEADS, "rngs": nnx.Rngs(0), **options})
