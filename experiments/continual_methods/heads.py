"""Classifiers trained by gradient descent on frozen features: fine-tuning one after the other, EWC, and replay.

Every example of the stream is used once, in mini-batches of 16. The softmax is over the classes seen so far.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.continual_methods.learner import Examples, Learner, Scores, Sizes

BATCH = 16  # examples of a step; replay adds as many from its buffer
PART = 512  # examples in a call of the compiled program; a shorter part is filled up with examples of weight 0
UNSEEN = -1e30  # score of a class that was never seen


class Head(NamedTuple):
    """The state of a classifier."""

    params: Any
    optimizer: Any
    seen: Float[Array, "classes"]  # 1 for a class that was seen
    anchor: Any  # EWC: parameters after the last task; None without EWC
    fisher: Any  # EWC: importance of each parameter, zero before the first task ends
    tasks: int  # number of tasks that have ended


class Buffer(NamedTuple):
    """Examples that replay keeps: of each class the first of every ``every``."""

    features: Float[np.ndarray, "kept width"]
    labels: Int[np.ndarray, "kept"]
    number: Int[np.ndarray, "classes"]  # of examples seen
    random: int  # number of draws so far


def _init_params(sizes: Sizes, hidden: int) -> Any:
    if not hidden:
        return {"w": jnp.zeros((sizes.width, sizes.classes)), "b": jnp.zeros(sizes.classes)}
    first = jax.random.normal(jax.random.key(sizes.seed), (sizes.width, hidden)) * (2 / sizes.width) ** 0.5
    outer = {"w": jnp.zeros((hidden, sizes.classes)), "b": jnp.zeros(sizes.classes)}
    return outer | {"first": first, "first_bias": jnp.zeros(hidden)}


def _logits(params: Any, x: Float[Array, "N width"], seen: Float[Array, "classes"]) -> Float[Array, "N classes"]:
    if "first" in params:
        x = jax.nn.relu(x @ params["first"] + params["first_bias"])
    return jnp.where(seen > 0, x @ params["w"] + params["b"], UNSEEN)


@functools.partial(jax.jit, static_argnames="optimizer")
def _train(optimizer: Any, head: Head, batches: Any, penalty: Array) -> Head:
    """One step for each batch of features, labels and weights."""

    def loss(params, batch):
        x, labels, weights = batch
        nats = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x, head.seen), labels)
        value = jnp.sum(nats * weights) / jnp.maximum(jnp.sum(weights), 1.0)
        if head.fisher is None:
            return value
        pulls = jax.tree.map(lambda f, p, a: jnp.sum(f * (p - a) ** 2), head.fisher, params, head.anchor)
        return value + 0.5 * penalty * sum(jax.tree.leaves(pulls))

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss)(params, batch)
        updates, after = optimizer.update(gradients, state, params)
        used = jnp.sum(batch[2]) > 0
        stepped = (optax.apply_updates(params, updates), after)
        return jax.tree.map(lambda new, old: jnp.where(used, new, old), stepped, carry), None

    (params, state), _ = jax.lax.scan(step, (head.params, head.optimizer), batches)
    return head._replace(params=params, optimizer=state)


def _batches(x: np.ndarray, labels: np.ndarray, size: int) -> Any:
    """Arrays [steps, size, ...] of a part, filled up to `PART` examples of the stream."""
    steps, missing = PART // BATCH, PART // BATCH * size - len(labels)
    filled = (
        np.concatenate([x, np.zeros((missing, x.shape[1]), x.dtype)]),
        np.concatenate([labels, np.zeros(missing, labels.dtype)]),
        np.concatenate([np.ones(len(labels), np.float32), np.zeros(missing, np.float32)]),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(steps, size, *leaf.shape[1:]), filled)


def fine_tuned(rate: float, optimizer: str = "adam", hidden: int = 0, penalty: float | None = None) -> Learner:
    """A linear head, or one with a hidden layer, trained on the stream as it comes.

    Args:
        rate: learning rate.
        optimizer: "sgd" or "adam".
        hidden: number of hidden units; 0 for a linear head.
        penalty: λ of EWC (Kirkpatrick et al. 2017), whose Fisher information is a running mean over tasks, or None.
    """
    transformation = _optimizer(optimizer, rate)

    def init(sizes: Sizes) -> Head:
        params = _init_params(sizes, hidden)
        zeros = jax.tree.map(jnp.zeros_like, params) if penalty is not None else None
        return Head(params, transformation.init(params), jnp.zeros(sizes.classes), zeros, zeros, 0)

    def learn(head: Head, examples: Examples, labels: Int[np.ndarray, "N"]) -> Head:
        head = head._replace(seen=head.seen.at[labels].set(1.0))
        for start in range(0, len(labels), PART):
            part = slice(start, start + PART)
            batches = _batches(examples.features[part], labels[part], BATCH)
            head = _train(transformation, head, batches, jnp.float32(penalty or 0.0))
        return head

    def end_task(head: Head, examples: Examples, labels: Int[np.ndarray, "N"]) -> Head:
        if penalty is None:
            return head
        new = _fisher(head.params, examples.features, labels, head.seen)
        merged = jax.tree.map(lambda f, old: (f + head.tasks * old) / (head.tasks + 1), new, head.fisher)
        return head._replace(anchor=head.params, fisher=merged, tasks=head.tasks + 1)

    return Learner(init, learn, _scores, end_task)


@functools.cache
def _optimizer(name: str, rate: float) -> optax.GradientTransformation:
    """One object for equal settings, so that a program is compiled once."""
    return optax.sgd(rate, momentum=0.9) if name == "sgd" else optax.adam(rate)


def _scores(head: Head, examples: Examples) -> Scores:
    return np.asarray(_logits(head.params, jnp.asarray(examples.features), head.seen))


@jax.jit
def _fisher(params: Any, x: Array, labels: Array, seen: Array) -> Any:
    """The mean squared gradient of each parameter of a linear head."""
    error = jax.nn.softmax(_logits(params, x, seen)) - jax.nn.one_hot(labels, len(seen))
    return {"w": (x**2).T @ error**2 / len(x), "b": jnp.mean(error**2, axis=0)}


def replayed(rate: float, every: int) -> Learner:
    """A linear head trained by Adam on new examples and as many kept ones: one example in ``every`` of each class."""
    plain, transformation = fine_tuned(rate), _optimizer("adam", rate)

    def init(sizes: Sizes) -> tuple[Head, Buffer]:
        empty = Buffer(
            np.zeros((0, sizes.width), np.float32), np.zeros(0, np.int32), np.zeros(sizes.classes, np.int64), sizes.seed
        )
        return plain.init(sizes), empty

    def learn(state: tuple[Head, Buffer], examples: Examples, labels: Int[np.ndarray, "N"]) -> tuple[Head, Buffer]:
        head, buffer = state
        head = head._replace(seen=head.seen.at[labels].set(1.0))
        for start in range(0, len(labels), PART):
            x, y = examples.features[start : start + PART], labels[start : start + PART]
            batches = _batches(x, y, BATCH)
            if len(buffer.labels):
                rows = np.random.default_rng((buffer.random, 3)).integers(0, len(buffer.labels), batches[1].shape)
                weights = np.broadcast_to(batches[2].max(axis=1, keepdims=True), rows.shape)
                old = (buffer.features[rows], buffer.labels[rows], weights)
                batches = tuple(np.concatenate(pair, axis=1) for pair in zip(batches, old, strict=True))
            head = _train(transformation, head, batches, jnp.float32(0.0))
            buffer = _keep(buffer, x, y, every)
        return head, buffer

    return Learner(init, learn, lambda state, examples: _scores(state[0], examples))


def _keep(buffer: Buffer, x: np.ndarray, labels: np.ndarray, every: int) -> Buffer:
    """The buffer after a part of the stream."""
    number, kept = buffer.number.copy(), []
    for row, label in enumerate(labels):
        if number[label] % every == 0:
            kept.append(row)
        number[label] += 1
    features = np.concatenate([buffer.features, x[kept]])
    return Buffer(features, np.concatenate([buffer.labels, labels[kept]]), number, buffer.random + 1)
