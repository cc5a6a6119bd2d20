"""The flags --dtype, --remat, --kernel and --accumulate: how a step is computed and in how much memory."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from nl_jax import InputError
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.precision import DTYPES
from nl_jax.models.remat import POLICIES
from nl_jax.parallel import batch_parts, rows_of_part
from nl_jax.parallel.kernels import KERNELS, choose_backend


def define_dtype_flag(values: flags.FlagValues) -> None:
    """Adds the flag --dtype. None, its default, stands for float32: runs of earlier versions have no such flag."""
    text = "Type of activations and matrix products; parameters and states of memories are float32. Default: float32."
    flags.DEFINE_enum("dtype", None, DTYPES, text, flag_values=values)


def define_kernel_flag(values: flags.FlagValues) -> None:
    """Adds the flag --kernel. None, its default, stands for auto."""
    text = (
        "What carries the state of memories through a text, and computes attention: a kernel that keeps it on the chip "
        "(pallas), XLA's scan over chunks (xla), or auto, the kernel on a TPU or GPU where there is one for the model "
        "and its sizes. They differ in rounding only. Default: auto."
    )
    flags.DEFINE_enum("kernel", None, KERNELS, text, flag_values=values)


def check_kernel(values: flags.FlagValues, configs: Mapping[str, LanguageModelConfig], mesh: jax.sharding.Mesh) -> None:
    """Raises `InputError` if --kernel=pallas cannot run one of the models on the mesh's devices; compiles nothing."""
    if values.kernel != "pallas":
        return
    tokens = jax.ShapeDtypeStruct((batch_parts(mesh), values.seq_len), jnp.int32)
    with jax.set_mesh(mesh):
        for name, config in configs.items():
            try:
                choose_backend("pallas", lambda backend: True)
                jax.eval_shape(lambda tokens, config=config: LanguageModel(config, rngs=nnx.Rngs(0))(tokens), tokens)
            except InputError as error:
                raise InputError(f"--models={name} --{error}") from error


def define_compute_flags(values: flags.FlagValues) -> None:
    """Adds the flags."""
    define_dtype_flag(values)
    remat = (
        "What the backward pass of a block recomputes: none; block (all of it, the least memory); dots (all but the "
        "products with parameters). Default: the preset's, none up to small, then block."
    )
    flags.DEFINE_enum("remat", None, tuple(POLICIES), remat, flag_values=values)
    define_kernel_flag(values)
    accumulate = (
        "Microbatches of a step, which run one after the other on each device and whose gradients are summed: less "
        "memory, the same result but for rounding."
    )
    flags.DEFINE_integer("accumulate", 1, accumulate, flag_values=values)


def compute_fields(values: flags.FlagValues) -> dict[str, Any]:
    """Fields of a model's configuration that the flags set, where the launcher has them and they are given."""
    names = [name for name in ("dtype", "remat", "kernel") if name in values]
    return {name: values[name].value for name in names if values[name].value is not None}


def check_batch_size(values: flags.FlagValues, mesh: jax.sharding.Mesh) -> None:
    """Raises `InputError` unless the mesh splits the batch evenly, and --accumulate each part."""
    shares = batch_parts(mesh)
    if rows_of_part(mesh, values.batch_size) % values.accumulate:
        each = f"on each of {shares} devices" if shares > 1 else "in a batch"
        raise InputError(
            f"--batch_size={values.batch_size} --accumulate={values.accumulate}: expected a batch of a multiple of "
            f"{shares * values.accumulate}, {values.accumulate} microbatches {each}"
        )
