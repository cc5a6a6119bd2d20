"""Parity: strings of 0 and 1, and after each symbol the question whether the number of 1s so far is even."""

import numpy as np
from jaxtyping import Int32

from nl_jax.errors import InputError
from nl_jax.tasks.recall import Batch

PADDING = 2  # the token after the end of a string
PARITY_VOCABULARY = 3  # tokens: 0, 1 and padding


def parity_batch(
    seed: int, step: int, *, batch_size: int, min_length: int, max_length: int, distinct: bool = False
) -> Batch:
    r"""One batch of the task, a pure function of the arguments; other seeds and steps have streams of their own.

    A string grows by a 0 or a 1, each with probability :math:`m / (2 (1 + m))`, m the middle of the window, rounded
    down, and else ends; at ``max_length`` it ends too. Too short ones are dropped. One with an odd number of 1s gets
    another 1, or is dropped where that does not fit, so that whole strings are even, their prefixes even or odd.

    Strings repeat, short ones often, in a batch and among batches: without ``distinct`` for training on fresh batches,
    which does not need them different, with it for evaluation. Training sees the shortest strings of evaluation too.

    Args:
        seed: not negative.
        step: not negative.
        batch_size: strings, B; at least 1.
        min_length: symbols of a string at least; at least 1.
        max_length: symbols of a string at most, T; at least ``min_length``.
        distinct: drop strings that the batch already has.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``: at each symbol, 0 or 1, the
        target is 1 if the 1s up to and with it are even in number, else 0, and the mask 1; after the string's end the
        input is `PADDING`, target and mask 0.

    Raises:
        InputError: sizes that do not fit, or more distinct strings than there are.

    References:
        The generator in the code of Bhattamishra et al., `On the Ability and Limitations of Transformers to Recognize
        Formal Languages <https://arxiv.org/abs/2009.11264>`_, 2020, with one softmax over labels at each symbol as in
        Irie et al., `Practical Computational Power of Linear Transformers <https://arxiv.org/abs/2310.16076>`_, 2023.
    """
    for name, size, low in (
        ("batch_size", batch_size, 1),
        ("min_length", min_length, 1),
        ("max_length", max_length, min_length),
    ):
        if size < low:
            raise InputError(f"{name}={size}: expected at least {low}")
    there_are = 2**max_length - 2 ** (min_length - 1)  # half of the strings of each length
    if distinct and batch_size > there_are:
        raise InputError(
            f"{batch_size} distinct strings of even parity, {min_length} to {max_length} symbols long: "
            f"expected at most {there_are}, all there are"
        )
    random = np.random.default_rng((seed, step))
    inputs = np.empty((0, max_length), np.int32)
    while len(inputs) < batch_size:
        inputs = np.concatenate([inputs, _draw(random, 4 * batch_size, min_length, max_length)])
        if distinct:
            _, first = np.unique(inputs, axis=0, return_index=True)
            inputs = inputs[np.sort(first)]  # in the order they were drawn, or short ones would be preferred
    inputs = inputs[:batch_size]
    mask = inputs != PADDING
    targets = (1 - np.cumsum(inputs == 1, axis=1, dtype=np.int32) % 2) * mask
    return {"inputs": inputs, "targets": targets, "mask": mask.astype(np.float32)}


def _draw(random: np.random.Generator, count: int, min_length: int, max_length: int) -> Int32[np.ndarray, "kept T"]:
    """Draws ``count`` strings and keeps those that are neither too short nor odd and full."""
    stop = 1 / (1 + (min_length + max_length) // 2)
    lengths = np.minimum(random.geometric(stop, count) - 1, max_length)[:, None]
    symbols = random.integers(2, size=(count, max_length), dtype=np.int32)
    position = np.arange(max_length)
    odd = np.sum(symbols * (position < lengths), axis=1, keepdims=True) % 2
    symbols[position == lengths] = 1  # seen only where the string is odd and thus longer by one
    kept = (lengths >= min_length) & (lengths + odd <= max_length)
    return np.where(position < lengths + odd, symbols, np.int32(PADDING))[kept[:, 0]]
