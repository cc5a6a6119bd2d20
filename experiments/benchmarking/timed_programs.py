"""The programs that experiments.benchmark measures (training of one model on one batch), and how it times them."""

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
    """The sizes of a model and its batch, and how it computes, named as in ``LanguageModelConfig``.

    ``memory_limit`` is the largest number of bytes that a step may need; only programs in JAX check it, and only they
    use ``remat``.
    """

    vocab_size: int
    width: int
    num_heads: int
    num_layers: int
    mlp_hidden: int
    batch_size: int
    length: int
    memory_limit: float = math.inf
    dtype: str = "float32"
    remat: str = "none"


def sizes_of(config: LanguageModelConfig, batch_size: int, memory_limit: float = math.inf) -> Sizes:
    """The sizes of a model on sequences of its ``context_length``."""
    shape = config.vocab_size, config.width, config.num_heads, config.num_layers, config.mlp_hidden
    return Sizes(*shape, batch_size, config.context_length, memory_limit, config.dtype, config.remat)


class Program(NamedTuple):
    """A training program to measure. Its functions return the loss in nats per token when all computation has ended.

    Attributes:
        parameters: number of parameters.
        step: makes one training step.
        forward: runs the forward pass alone; None if it is not measured.
        flops: operations of a step; None if they are not counted.
        peak_memory_bytes: memory that a step needs; None if unknown.
        state_bytes: size of the state that the model passes from call to call; None if unknown.
    """

    parameters: int
    step: Callable[[], float]
    forward: Callable[[], float] | None = None
    flops: Flops | None = None
    peak_memory_bytes: int | None = None
    state_bytes: int | None = None


def whole_device(batch_size: int, num_heads: int) -> jax.sharding.Mesh:
    """A mesh of one accelerator, or of all CPU cores that are JAX devices, which split the batch and then the heads."""
    devices = jax.local_devices() if jax.default_backend() == "cpu" else jax.local_devices()[:1]
    data = math.gcd(len(devices), batch_size)
    tensor = math.gcd(len(devices) // data, num_heads)
    return parse_mesh(f"data:{data},tensor:{tensor}", devices[: data * tensor])


class Training:
    """Training of a model of this project on one batch of random tokens on `whole_device`, compiled but not started.

    Args:
        config: configuration of the model.
        batch_size: number of sequences in the batch.
        length: number of tokens in a sequence.
        init_model: makes the model; None makes the model of ``config``.
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
        """Initialises the model and the optimizer's state."""
        make = jax.jit(self._make, out_shardings=parameter_shardings(self._mesh, self._shapes))
        self._state = jax.block_until_ready(make())

    def step(self) -> float:
        """Makes one training step and returns the loss before it."""
        self._state, outputs = jax.block_until_ready(self._compiled(self._state, self._batch))
        return float(outputs["loss"])

    def compile_forward(self) -> Callable[[], float]:
        """Compiles the forward pass alone, as a function that returns the loss."""
        shardings = parameter_shardings(self._mesh, self._shapes.model), batch_sharding(self._mesh)
        loss = jax.jit(lambda model, batch: token_losses(model, batch).mean(), in_shardings=shardings)
        compiled = loss.lower(self._shapes.model, self._batch).compile()
        return lambda: float(compiled(self._state.model, self._batch))

    def flops(self) -> Flops | None:
        """The operations of a step, or None if they cannot be counted."""
        try:
            return count_flops(self._train_step, self._shapes, self._batch)
        except NotImplementedError:
            return None

    def check_memory(self, limit: float) -> int:
        """The number of bytes that a step needs; raises ``MemoryError`` if it is more than ``limit``."""
        need = peak_memory_bytes(self._compiled) * self._mesh.size
        if need > limit:
            raise MemoryError(f"a step needs {need / 2**20:,.0f} MiB, the limit is {limit / 2**20:,.0f} MiB")
        return need

    @property
    def temporary_bytes(self) -> int:
        """Bytes on one device of what a step needs besides its arguments and outputs."""
        analysis: Any = self._compiled.memory_analysis()
        return int(analysis.temp_size_in_bytes)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._shapes.model))

    @property
    def state_bytes(self) -> int:
        """Bytes of the state that the model passes from call to call."""
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
    """The training program of a model of this project, started.

    Args:
        config: configuration of the model.
        batch_size: number of sequences in the batch.
        length: number of tokens in a sequence.
        memory_limit: largest number of bytes that a step may need.
        whole: whether the program has also the forward pass alone, and FLOPs.
        init_model: makes the model; None makes the model of ``config``.

    Raises:
        MemoryError: if a step needs more memory; then nothing has been run.
    """
    training = Training(config, batch_size, length, init_model)
    need = training.check_memory(memory_limit)
    training.start()
    forward, flops = (training.compile_forward(), training.flops()) if whole else (None, None)
    return Program(training.parameters, training.step, forward, flops, need, training.state_bytes)


def matrix_product(size: int) -> Callable[[], float]:
    """A function that multiplies two float32 matrices [size, size], 2·size³ operations, and returns after that.

    The rows of the first matrix are split over the devices of `whole_device`.
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
    """Seconds of each run of a function, and in one line its problem, if there was one."""

    seconds: list[float]
    problem: str | None = None


def interleave(
    calls: Mapping[Key, Callable[[], float]], rounds: int, max_seconds: float = math.inf
) -> dict[Key, Timing]:
    """Times functions in turn, round by round, so that other load on the machine affects all of them alike.

    Args:
        calls: functions by name. Each runs once to warm up, and then twice per round; the second run counts, since the
            first one after another program waits for memory from the system. A function that raises an error is not
            run again; one that returns a value that is not finite is. Either is reported as its problem, and the other
            functions continue.
        rounds: number of rounds, at least 1.
        max_seconds: a function whose warm-up takes longer is not run again; the time of its warm-up counts.

    Returns:
        Timings by name, without seconds if the warm-up failed.
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
    """Describes an error in one line of at most 120 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:120]
