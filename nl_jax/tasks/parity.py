"""Parity: strings of 0s and 1s; the target at each symbol is whether the number of 1s so far is even."""

import numpy as np
from jaxtyping import Int32

from nl_jax.errors import InputError
from nl_jax.tasks.recall import Batch

PADDING = 2  # the token after the end of a string
PARITY_VOCABULARY = 3
"""Number of tokens: 0, 1 and padding."""


def parity_batch(
    seed: int, step: int, *, batch_size: int, min_length: int, max_length: int, distinct: bool = False
) -> Batch:
    r"""Generates one batch, as a pure function of the arguments; each seed and step has its own random stream.

    A string grows by a 0 or a 1, each with probability :math:`m / (2 (1 + m))`, where m is the middle of the range of
    lengths, rounded down; otherwise the string ends. At ``max_length`` it ends in any case. Strings that are too short
    are dropped. A string with an odd number of 1s gets another 1, or is dropped if that does not fit. So whole strings
    are even, and their prefixes are even or odd.

    Without ``distinct`` strings repeat within a batch and between batches, short ones often: this is for training on
    fresh batches. Use ``distinct`` for evaluation. Training also sees the shortest strings of evaluation.

    Args:
        seed: random seed, 0 or more.
        step: index of the batch, 0 or more.
        batch_size: number of strings, B; at least 1.
        min_length: smallest number of symbols in a string; at least 1.
        max_length: largest number of symbols in a string, T; at least ``min_length``.
        distinct: whether to drop strings that the batch already has.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``. At each symbol (input 0 or 1) the
        mask is 1, and the target is 1 if the number of 1s up to and including this symbol is even, else 0. After the
        end of the string the input is `PADDING`, and target and mask are 0.

    Raises:
        InputError: for sizes out of range, or if fewer than ``batch_size`` distinct strings exist.

    Examples:
        >>> from nl_jax.tasks import parity_batch
        >>> batch = parity_batch(0, 0, batch_size=2, min_length=3, max_length=6)
        >>> print(batch["inputs"])
        [[1 1 1 1 2 2]
         [1 0 0 1 2 2]]
        >>> print(batch["targets"])  # 1 where the number of 1s so far is even
        [[0 1 0 1 0 0]
         [0 0 0 1 0 0]]

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
    there_are = 2**max_length - 2 ** (min_length - 1)  # half of the strings of each length are even
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
            inputs = inputs[np.sort(first)]  # in the order of drawing; sorted order would prefer short strings
    inputs = inputs[:batch_size]
    mask = inputs != PADDING
    targets = (1 - np.cumsum(inputs == 1, axis=1, dtype=np.int32) % 2) * mask
    return {"inputs": inputs, "targets": targets, "mask": mask.astype(np.float32)}


def _draw(random: np.random.Generator, count: int, min_length: int, max_length: int) -> Int32[np.ndarray, "kept T"]:
    """Draws ``count`` strings, and keeps those that are long enough and can be made even."""
    stop = 1 / (1 + (min_length + max_length) // 2)
    lengths = np.minimum(random.geometric(stop, count) - 1, max_length)[:, None]
    symbols = random.integers(2, size=(count, max_length), dtype=np.int32)
    position = np.arange(max_length)
    odd = np.sum(symbols * (position < lengths), axis=1, keepdims=True) % 2
    symbols[position == lengths] = 1  # visible only if the string is odd, and so longer by one
    kept = (lengths >= min_length) & (lengths + odd <= max_length)
    return np.where(position < lengths + odd, symbols, np.int32(PADDING))[kept[:, 0]]
