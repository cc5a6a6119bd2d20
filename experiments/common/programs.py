"""Training of a small model as one compiled program, on one device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from nl_jax.models import LanguageModelConfig
from nl_jax.parallel import parameter_shardings, parse_mesh
from nl_jax.training import LevelOptimizers, TrainState, compile_step, init_state


class Program(NamedTuple):
    """How a model is made and trained.

    Attributes:
        init: ``init(key)`` returns the state before the first step.
        take_step: ``take_step(state, batch)`` returns the next state and the step's outputs; ``state`` is donated.
        mesh: where it runs.
    """

    init: Callable[[jax.Array], TrainState]
    take_step: jax.stages.Compiled
    mesh: jax.sharding.Mesh


def make_program(
    build: Callable[..., Any], config: LanguageModelConfig, optimizer: LevelOptimizers, batch: Any
) -> Program:
    """Compiles training of ``build(config, rngs=rngs)`` for batches like the given one, arrays or their shapes."""
    mesh = parse_mesh(devices=jax.local_devices()[:1])  # the models are small

    def make(key: jax.Array) -> TrainState:
        return init_state(lambda: build(config, rngs=nnx.Rngs(key)), optimizer)

    template = jax.eval_shape(make, jax.random.key(0))
    init = jax.jit(make, out_shardings=parameter_shardings(mesh, template))
    return Program(init, compile_step(optimizer, mesh, template, batch), mesh)
