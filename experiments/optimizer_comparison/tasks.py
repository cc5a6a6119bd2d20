"""The tasks of experiments.optimizers: a small vision transformer on images, and a small language model on text."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from experiments.common import launcher
from nl_jax import InputError
from nl_jax.data import (
    ImageSet,
    Packed,
    evaluation_batches,
    load_digits,
    load_image_folder,
    load_text_data,
    windows,
)
from nl_jax.models import LanguageModel, VisionTransformer, count_parameters, named_config
from nl_jax.models.losses import mean_loss

VISION = {"width": 64, "num_layers": 3, "num_heads": 4, "mlp_hidden": 128}
LANGUAGE = {"width": 128, "num_layers": 2, "mlp_hidden": 256, "chunk_size": 16, "cms_periods": (1,)}
HELD_OUT_WINDOWS = 256  # number of windows of text in an evaluation

Scores = dict[str, jax.Array]


class ComparisonTask(NamedTuple):
    """A training task on which optimizers are compared: pure functions of a model, and data on the device.

    Attributes:
        metadata: entries ``data`` and ``models`` of config.json.
        parameters: number of parameters.
        init: ``init(key)`` returns the model.
        batch: ``batch(train, key)`` returns a batch, drawn with replacement.
        loss: ``loss(model, batch)`` returns the mean loss in nats.
        score: ``score(model, held-out data)`` returns the ``loss`` in nats, and further figures, by name.
        train, validation, test: the data.
    """

    metadata: dict[str, Any]
    parameters: int
    init: Callable[[jax.Array], Any]
    batch: Callable[[Any, jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    score: Callable[[Any, Any], Scores]
    train: Any
    validation: Any
    test: Any


def vision_task(values: flags.FlagValues) -> ComparisonTask:
    """Classification of scikit-learn's digits, or of ``--images``, with 16 patches per image."""
    if values.image_size % 4:
        raise InputError(f"--image_size={values.image_size}: expected a multiple of 4, the patches on each side")
    data = load_digits() if values.images is None else load_image_folder(values.images, values.image_size)
    _, size, _, channels = data.train.images.shape
    sizes = {"image_size": size, "patch_size": size // 4, "channels": channels, "num_classes": len(data.classes)}
    sizes |= VISION

    def init(key):
        return VisionTransformer(**sizes, rngs=nnx.Rngs(key))

    def batch(train, key):
        chosen = jax.random.randint(key, (values.batch_size,), 0, len(train.labels))
        return jax.tree.map(lambda leaf: leaf[chosen], train)

    def score(model, held_out):
        logits = model(held_out.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, held_out.labels)
        return {"loss": losses.mean(), "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == held_out.labels)}

    def put(split: ImageSet) -> ImageSet:
        return jax.tree.map(jnp.asarray, split)

    parameters = _size_of(init)
    return ComparisonTask(
        {"data": data.fingerprint, "models": {"vision_transformer": {**sizes, "parameters": parameters}}},
        parameters,
        init,
        batch,
        lambda model, batch: score(model, batch)["loss"],
        score,
        *(put(split) for split in (data.train, data.validation, data.test)),
    )


def language_task(values: flags.FlagValues) -> ComparisonTask:
    """Prediction of the next byte of ``--data``, by default the source of the Python standard library."""
    data = load_text_data(values.data, exclude=functools.partial(launcher.holds_run, launcher.workdir_of(values)))
    length = values.seq_len
    sizes = {**LANGUAGE, "vocab_size": data.tokenizer.vocab_size, "context_length": length}
    config = named_config(values.model, "tiny", **sizes)
    windows(data.train.tokens, length)  # raises an error if the text is too short

    def batch(train, key):
        starts = jax.random.randint(key, (values.batch_size,), 0, len(train) - length)
        sequences = train[starts[:, None] + jnp.arange(length + 1)].astype(jnp.int32)
        return {"inputs": sequences[:, :-1], "targets": sequences[:, 1:]}

    def score(model, held_out):
        """Scores one batch at a time, which bounds the memory for logits."""

        def nats(batch):
            weight = batch["mask"].sum()
            return mean_loss(model, batch) * weight, weight

        total, weight = jax.tree.map(jnp.sum, jax.lax.map(nats, held_out))
        return {"loss": total / weight}

    def put(packed: Packed) -> Any:
        batches = evaluation_batches(
            packed, batch_size=values.batch_size, seq_len=length, max_tokens=HELD_OUT_WINDOWS * length
        )
        return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *batches.batches)

    parameters = count_parameters(config)
    return ComparisonTask(
        {"data": data.fingerprint, "models": {values.model: {**config.to_json(), "parameters": parameters}}},
        parameters,
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)),
        batch,
        mean_loss,
        score,
        jnp.asarray(data.train.tokens),
        put(data.validation),
        put(data.test),
    )


TASKS = {"vit": vision_task, "lm": language_task}


def _size_of(init: Callable[[jax.Array], Any]) -> int:
    """Number of parameters, computed from shapes alone."""
    try:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    except ValueError as error:
        raise InputError(str(error)) from error
