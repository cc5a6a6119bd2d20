"""What experiments.benchmark measures, and how: training of one model on one batch, many of them in turn."""

import functools
import math
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from nl_jax.costs import Flops, count_flops
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.losses import token_losses
from nl_jax.parallel import batch_sharding, parameter_shardings, parse_mesh
from nl_jax.training import compile_step, init_state, make_optimizer, train_step
from nl_jax.training.step import peak_memory_bytes

Key = TypeVar("Key", bound=Hashable)


class Sizes(NamedTuple):
    """What a model and its batch are built from, named as in ``LanguageModelConfig``.

    ``memory_limit`` is what a step may need, in bytes; only programs in JAX keep to it.
    """

    vocab_size: int
    width: int
    num_heads: int
    num_layers: int
    mlp_hidden: int
    batch_size: int
    length: int
    memory_limit: float = math.inf


class Program(NamedTuple):
    """Training to measure; its calls return the loss in nats per token once all that they started has ended.

    Attributes:
        parameters: number of them.
        step: one training step.
        forward: the forward pass alone; None where it is not asked for.
        flops: of a step; None where they are not counted.
        peak_memory_bytes: what a step needs; None where it is not known.
        state_bytes: what the model carries from call to call; None where it is not known.
    """

    parameters: int
    step: Callable[[], float]
    forward: Callable[[], float] | None = None
    flops: Flops | None = None
    peak_memory_bytes: int | None = None
    state_bytes: int | None = None


def whole_device(batch_size: int, num_heads: int) -> jax.sharding.Mesh:
    """One accelerator, or a CPU with all cores that JAX has as devices: they split the batch, and then the heads."""
    devices = jax.devices() if jax.default_backend() == "cpu" else jax.devices()[:1]
    data = math.gcd(len(devices), batch_size)
    tensor = math.gcd(len(devices) // data, num_heads)
    return parse_mesh(f"data:{data},tensor:{tensor}", devices[: data * tensor])


class Training:
    """Training of a model of ours on one batch of random tokens on `whole_device`: compiled, but not started.

    Args:
        config: of the model.
        batch_size: sequences in the batch.
        length: tokens in a sequence.
        init_model: makes the model; None for that of ``config``.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        batch_size: int,
        length: int,
        init_model: Callable[[], LanguageModel] | None = None,
    ):
        mesh = self._mesh = whole_device(batch_size, config.num_heads)
        optimizer = make_optimizer(learning_rate=1e-3, steps=1000, cms_periods=config.optimizer_periods)
        init_model = init_model or (lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
        self._make = functools.partial(init_state, init_model, optimizer)
        self._train_step = functools.partial(train_step, optimizer)
        self._shapes = jax.eval_shape(self._make)
        tokens = np.random.default_rng(0).integers(config.vocab_size, size=(batch_size, length + 1), dtype=np.int32)
        self._batch = jax.device_put({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}, batch_sharding(mesh))
        self._compiled = compile_step(optimizer, mesh, self._shapes, self._batch)
        self._state: Any = None

    def start(self) -> None:
        """Makes the model and the optimizer's state."""
        make = jax.jit(self._make, out_shardings=parameter_shardings(self._mesh, self._shapes))
        self._state = jax.block_until_ready(make())

    def step(self) -> float:
        """One training step; the loss before it."""
        self._state, outputs = jax.block_until_ready(self._compiled(self._state, self._batch))
        return float(outputs["loss"])

    def compile_forward(self) -> Callable[[], float]:
        """The forward pass alone, as a call that returns the loss."""
        shardings = parameter_shardings(self._mesh, self._shapes.model), batch_sharding(self._mesh)
        loss = jax.jit(lambda model, batch: token_losses(model, batch).mean(), in_shardings=shardings)
        compiled = loss.lower(self._shapes.model, self._batch).compile()
        return lambda: float(compiled(self._state.model, self._batch))

    def flops(self) -> Flops | None:
        """Operations of a step; None where they cannot be counted."""
        try:
            return count_flops(self._train_step, self._shapes, self._batch)
        except NotImplementedError:
            return None

    def check_memory(self, limit: float) -> int:
        """Bytes that a step needs; ``MemoryError`` where that is more than ``limit``."""
        need = peak_memory_bytes(self._compiled) * self._mesh.size
        if need > limit:
            raise MemoryError(f"a step needs {need / 2**20:,.0f} MiB, the limit is {limit / 2**20:,.0f} MiB")
        return need

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._shapes.model))

    @property
    def state_bytes(self) -> int:
        """Bytes of the state that the model carries from call to call."""
        batch_size = len(self._batch["inputs"])
        state = jax.eval_shape(lambda model: model.init_state(batch_size), self._shapes.model)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def our_program(
    config: LanguageModelConfig,
    batch_size: int,
    length: int,
    *,
    memory_limit: float,
    whole: bool = True,
    init_model: Callable[[], LanguageModel] | None = None,
) -> Program:
    """Training of a model of ours, started.

    Args:
        config: of the model.
        batch_size: sequences in the batch.
        length: tokens in a sequence.
        memory_limit: bytes that a step may need.
        whole: with the forward pass alone, and FLOPs.
        init_model: makes the model; None for that of ``config``.

    Raises:
        MemoryError: a step needs more, and nothing was run.
    """
    training = Training(config, batch_size, length, init_model)
    need = training.check_memory(memory_limit)
    training.start()
    forward, flops = (training.compile_forward(), training.flops()) if whole else (None, None)
    return Program(training.parameters, training.step, forward, flops, need, training.state_bytes)


def matrix_product(size: int) -> Callable[[], float]:
    """A product of two float32 matrices [size, size], 2·size³ operations, as a call that returns after it.

    The devices of `whole_device` share the rows of the first.
    """
    mesh = whole_device(size, 1)
    rows = jax.device_put(jnp.full((size, size), 0.5), batch_sharding(mesh))
    matrix = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    product = jax.jit(jnp.matmul).lower(rows, matrix).compile()

    def call() -> float:
        jax.block_until_ready(product(rows, matrix))
        return 0.0

    return call


class Timing(NamedTuple):
    """Seconds of each run of a call, and in one line what went wrong, if anything did."""

    seconds: list[float]
    problem: str | None = None


def interleave(
    calls: Mapping[Key, Callable[[], float]], rounds: int, max_seconds: float = math.inf
) -> dict[Key, Timing]:
    """Times calls in turn, round by round, so that what else the machine does meets all of them alike.

    Args:
        calls: by name; each runs once to warm up, then twice a round, of which the second counts: after another
            program the first waits for memory from the system. One that raises is not run again, one that returns what
            is not finite is: either is its problem, and the others go on.
        rounds: at least 1.
        max_seconds: a call that takes longer to warm up is not run again: that time counts.

    Returns:
        Timings by name; without seconds where the warm-up failed.
    """
    timings = {key: Timing([]) for key in calls}
    done = set()
    for number in tqdm(range(rounds + 1), unit="round", file=sys.stderr, disable=None):  # None: only on a terminal
        for key, call in calls.items():
            if key in done:
                continue
            seconds, problem = timings[key]
            try:
                if number > 0:
                    call()
                start = time.perf_counter()
                value = call()
            except Exception as error:
                done.add(key)
                timings[key] = Timing(seconds, one_line(error))
                continue
            elapsed = time.perf_counter() - start
            if number == 0 and elapsed > max_seconds:
                done.add(key)
            if number > 0 or key in done:
                seconds.append(elapsed)
            timings[key] = Timing(seconds, problem if math.isfinite(value) else f"the loss is {value}")
    return timings


def one_line(error: Exception) -> str:
    """What went wrong, in at most 120 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
