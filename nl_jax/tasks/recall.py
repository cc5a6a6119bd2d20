"""Multi-query associative recall (MQAR): pairs of key and value, then every key again; the target is its value."""

import numpy as np

from nl_jax.errors import InputError

Batch = dict[str, np.ndarray]
FILLER = 0  # the token at positions without a key or a value
GAP_POWER = 0.01  # a in the weight gap^(a - 1)


def recall_batch(seed: int, step: int, *, batch_size: int, seq_len: int, vocab_size: int, pairs: int) -> Batch:
    r"""Generates one batch, as a pure function of the arguments; each seed and step has its own random stream.

    The first ``2 * pairs`` tokens are pairs: distinct keys from 1 to ``vocab_size // 2 - 1``, each followed by its
    value. Values are distinct too, from ``vocab_size // 2`` to ``vocab_size - 1``. Each key comes once more, as a
    query, at an even distance from the end of the pairs. A gap :math:`g = 1, 2, \dots` stands for the distance
    :math:`2 (g - 1)`; gaps are drawn without replacement with weights :math:`g^{a-1}`, a = 0.01, so that most queries
    come early. All other tokens are 0.

    Args:
        seed: random seed, 0 or more.
        step: index of the batch, 0 or more.
        batch_size: number of sequences, B.
        seq_len: number of tokens in a sequence, T; at least ``4 * pairs``.
        vocab_size: number of token ids; at least ``2 * pairs + 2``.
        pairs: number of keys; at least 1.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``. At a query the target is the
        value of the key and the mask is 1; elsewhere both are 0.

    Raises:
        InputError: for sizes out of range.

    Examples:
        >>> from nl_jax.tasks import recall_batch
        >>> batch = recall_batch(0, 0, batch_size=1, seq_len=12, vocab_size=8, pairs=2)
        >>> print(batch["inputs"][0])
        [3 7 1 6 3 0 0 0 1 0 0 0]
        >>> print(batch["targets"][0])
        [0 0 0 0 7 0 0 0 6 0 0 0]

    References:
        Arora et al., `Zoology <https://arxiv.org/abs/2312.04927>`_, 2023, and the generator in its code.
    """
    if pairs < 1:
        raise InputError(f"pairs={pairs}: expected at least 1")
    if seq_len < 4 * pairs:
        raise InputError(f"seq_len={seq_len}: expected at least {4 * pairs}, four times pairs={pairs}")
    if vocab_size < 2 * pairs + 2:
        raise InputError(f"vocab_size={vocab_size}: expected at least {2 * pairs + 2} for pairs={pairs}")
    random = np.random.default_rng((seed, step))

    def distinct(low: int, high: int) -> np.ndarray:
        return random.permuted(np.tile(np.arange(low, high, dtype=np.int32), (batch_size, 1)), axis=1)[:, :pairs]

    keys, values = distinct(1, vocab_size // 2), distinct(vocab_size // 2, vocab_size)
    # Sorting log-weights plus Gumbel noise draws without replacement (Gumbel top-k).
    log_weights = (GAP_POWER - 1) * np.log(np.arange(1, (seq_len - 2 * pairs) // 2 + 1))
    noise = random.gumbel(size=(batch_size, len(log_weights)))
    queries = 2 * pairs + 2 * np.argsort(-(log_weights + noise), axis=1)[:, :pairs]

    inputs = np.full((batch_size, seq_len), FILLER, np.int32)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    targets, mask = np.zeros_like(inputs), np.zeros_like(inputs, np.float32)
    for array, content in ((inputs, keys), (targets, values), (mask, np.float32(1))):
        np.put_along_axis(array, queries, content, axis=1)
    return {"inputs": inputs, "targets": targets, "mask": mask}
