"""Training of a small language model in one call, without files: for notebooks and first trials."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from nl_jax.data import TextData, evaluation_batches, load_text_data, train_iterator
from nl_jax.evaluation import evaluate
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.parallel import parameter_shardings, parse_mesh, place_batch
from nl_jax.training.divergence import finite_outputs
from nl_jax.training.loop import progress_bar
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.step import compile_step, init_state


class Trained(NamedTuple):
    """A model and how its training went.

    Examples:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from nl_jax.models import LanguageModel, named_config
        >>> from nl_jax.training import Trained
        >>> config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1)
        >>> model = LanguageModel(config, rngs=nnx.Rngs(0))
        >>> trained = Trained(model, losses=np.array([8.0, 7.5]), bits_per_byte=7.4)
        >>> print(trained.losses[-1])
        7.5
    """

    model: LanguageModel
    losses: Float[np.ndarray, " steps"]  # bits per token of each step's batch, before the step
    bits_per_byte: float  # on validation text, at the end


def train_in_memory(
    config: LanguageModelConfig,
    data: TextData | None = None,
    *,
    steps: int = 200,
    batch_size: int = 4,
    seq_len: int = 256,
    seed: int = 0,
    mesh: Mesh | None = None,
    validation_tokens: int = 16_384,
    **optimizer: Any,
) -> Trained:
    """Trains a language model on text and keeps it in memory; `fit` is the loop with checkpoints that can go on.

    Args:
        config: of the model; its ``vocab_size`` must be that of the data's tokenizer, 257 for bytes.
        data: the text, from `nl_jax.data.load_text_data`; by default the standard library's source.
        steps, batch_size, seq_len: optimizer steps, sequences in a batch, tokens in a sequence.
        seed: decides initial parameters and the order of the data.
        mesh: the devices, from `parse_mesh`; by default one.
        validation_tokens: how much validation text is scored at the end.
        optimizer: of `make_optimizer`; by default ``optimizer="m3"``.

    Raises:
        InputError: for sizes below 1 or a sequence longer than the text.
        TrainingDiverged: if loss or gradient is not finite.

    Examples:
        >>> from nl_jax.models import named_config
        >>> from nl_jax.training import train_in_memory
        >>> config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1, mlp_hidden=8)
        >>> trained = train_in_memory(config, steps=2, batch_size=1, seq_len=32, validation_tokens=64)
        >>> trained.losses.shape, trained.bits_per_byte > 0
        ((2,), True)
    """
    data = load_text_data() if data is None else data
    mesh = parse_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    rule = make_optimizer(steps=steps, cms_periods=config.optimizer_periods, **{"optimizer": "m3", **optimizer})
    batches = train_iterator(data.train, batch_size=batch_size, seq_len=seq_len, seed=seed)
    validation = evaluation_batches(
        data.validation, batch_size=batch_size, seq_len=seq_len, max_tokens=validation_tokens
    )

    def make():
        return init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(seed)), rule)

    state = jax.jit(make, out_shardings=parameter_shardings(mesh, jax.eval_shape(make)))()
    step, losses = None, []
    with progress_bar(config.mixer, steps) as bar:
        for number in range(1, steps + 1):
            batch = place_batch(mesh, next(batches))
            step = compile_step(rule, mesh, state, batch) if step is None else step
            state, outputs = step(state, batch)
            losses.append(finite_outputs(config.mixer, number, outputs)["loss"] / math.log(2))
            bar.update()
    return Trained(state.model, np.array(losses), evaluate(state.model, validation, mesh))
