"""Compiles a training step for a TPU slice, or a GPU, that is not here, and says what limits it.

    python -m experiments.topology --topology=v5e:16x16 --preset=paper_760m --mesh=data:16,fsdp:16 --workdir=runs/v5e
    python -m experiments.topology --topology=v5p:8x8x16 --preset=paper_1_3b --mesh=data:64,fsdp:16 --workdir=runs/v5p

It needs the compiler (pip install 'jax[tpu]'; for --topology=h100 it says what) and some minutes for each model, but no
TPU and no GPU. The tables say, for one chip:

memory      bytes of the state (parameters, optimizer) and of the temporaries, and their share of the chip's memory
work        operations of matrix products in the program (recomputation included, from the jaxpr), bytes that go through
            the main memory, and bytes that come from other chips, by kind of exchange and axis of the mesh; loops count
            as often as they run
roofline    least milliseconds by arithmetic, main memory and network; the longest of them is a bound for the step, and
            MFU is the share of the peak that the model's own operations (without recomputation) can then reach
estimate    milliseconds by the compiler's own count of cycles, without waiting for other chips

The workdir gets config.json and results.json. The same command goes on with the models whose figures are missing, and
prints the tables again.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from experiments.common import launcher
from experiments.common.cms_options import cms_fields, define_cms_flags
from experiments.common.compute_flags import check_batch_size, check_kernel, define_compute_flags
from experiments.common.launcher import RESULTS
from experiments.common.mixer_options import configuration, define_mixer_option
from experiments.common.optimizer_flags import define_optimizer_flags, optimizer_arguments, set_default_rates
from experiments.common.path_flags import define_workdir
from experiments.common.text_runs import check_split
from nl_jax import InputError
from nl_jax.costs import CHIPS, Chip, count_flops, forward_flops, roofline, traffic
from nl_jax.models import MODEL_NAMES, PRESETS, LanguageModel, LanguageModelConfig
from nl_jax.parallel import batch_parts, chip_of, parse_mesh, topology_devices
from nl_jax.training import compile_step, init_state, make_optimizer, train_step

NAME = "topology"
MEBI, GIBI = 2**20, 2**30


def define_flags() -> flags.FlagValues:
    """The flags, not yet parsed."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(
        flags.DEFINE_string,
        "topology",
        "v5e:4x4",
        "TPU and sizes of its torus: v5e:16x16, v6e:16x16, v5p:8x8x16; or h100, one GPU.",
    )
    define(flags.DEFINE_list, "models", "hope,transformer", f"Models to compile, of {', '.join(MODEL_NAMES)}.")
    define(flags.DEFINE_string, "preset", "paper_760m", f"Size of the models: {', '.join(PRESETS)}.")
    define(flags.DEFINE_string, "mesh", None, "Devices, as data:16,fsdp:16. Default: all are on fsdp.")
    define(flags.DEFINE_integer, "seq_len", 4096, "Tokens in a sequence.")
    define(flags.DEFINE_integer, "batch_size", None, "Sequences in a batch. Default: one for each part of the mesh.")
    define_mixer_option(values)
    define_cms_flags(values)
    define_compute_flags(values)
    define_optimizer_flags(values)
    define_workdir(values)
    return values


def main(argv: list[str] | None = None) -> int:
    return launcher.run(compile_models, define_flags(), __doc__, argv)


def compile_models(values: flags.FlagValues) -> None:
    """Compiles all models whose figures are not kept, and prints the tables."""
    jax.config.update("jax_platforms", "cpu")  # nothing runs; JAX would look for a TPU wherever its compiler is
    launcher.check_names("models", values.models, MODEL_NAMES, required=True)
    for name in ("seq_len", "batch_size", "accumulate"):
        if values[name].value is not None:
            launcher.check_range(values, name, 1)
    set_default_rates(values)
    chip = CHIPS[chip_of(values.topology)]
    configs = {
        name: configuration(values, name, values.preset, context_length=values.seq_len, **cms_fields(values, name))
        for name in values.models
    }
    config = {
        "launcher": NAME,
        "flags": {
            name: value for name, value in values.flag_values_dict().items() if name not in ("workdir", "models")
        },
        "data": {},
        "models": {},
    }
    workdir = launcher.own_workdir(values)
    launcher.check_workdir(workdir, config, (RESULTS,))
    devices = topology_devices(values.topology)
    mesh = parse_mesh(values.mesh or f"fsdp:{len(devices)}", devices)
    if values.batch_size is None:
        values["batch_size"].value = batch_parts(mesh) * values.accumulate
    check_batch_size(values, mesh)
    check_split(values, mesh)
    check_kernel(values, configs, mesh)
    results = launcher.claim_workdir(workdir, config, {"figures": {}})
    for name, model_config in configs.items():
        if name not in results["figures"]:
            print(f"{name}: compiling for {len(devices)} x {devices[0].device_kind}", file=sys.stderr)
            results["figures"][name] = measure(model_config, values, mesh)
            launcher.write_json(workdir / RESULTS, results)
    report(results["figures"], values.models, chip, mesh, workdir)


def measure(config: LanguageModelConfig, values: flags.FlagValues, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Compiles the training step of one model and returns its figures, those of bytes and operations for one device."""
    optimizer = make_optimizer(**optimizer_arguments(values), steps=1, cms_periods=config.optimizer_periods)
    state = jax.eval_shape(lambda: init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), optimizer))
    shape = jax.ShapeDtypeStruct((values.batch_size, values.seq_len), jnp.int32)
    batch = {"inputs": shape, "targets": shape}
    flops = count_flops(
        lambda state, batch: train_step(optimizer, state, batch, values.accumulate), state, batch
    ).matrix
    began = time.perf_counter()
    compiled = compile_step(optimizer, mesh, state, batch, values.accumulate)
    seconds = time.perf_counter() - began
    need: Any = compiled.memory_analysis()
    moved = traffic(program_text(compiled), mesh.shape)
    model_flops = 3 * sum(forward_flops(config, values.batch_size, values.seq_len).values())
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.model)),
        "compile_seconds": seconds,
        "state_bytes": need.argument_size_in_bytes,
        "temporary_bytes": need.temp_size_in_bytes,
        "flops": flops / mesh.size,
        "model_flops": model_flops / mesh.size,
        "memory_traffic_bytes": moved.memory_bytes,
        "collectives": [one._asdict() for one in moved.collectives],
        "network_bytes": moved.network_bytes,
        "estimated_cycles": moved.estimated_cycles,
    }


def program_text(compiled: Any) -> str:
    """The compiled program.

    Raises:
        InputError: if JAX cannot read it, as happens with a compiler that is newer than JAX.
    """
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"jax {jax.__version__} cannot read what the compiler made ({reason}); expected the compiler of jax's own "
            "version, as pip install 'jax[tpu]' brings it"
        ) from error


def report(figures: dict[str, Any], models: list[str], chip: Chip, mesh: jax.sharding.Mesh, workdir: Path) -> None:
    """Prints the tables."""
    memory: list[tuple[str, ...]] = [("model", "parameters", "compiled in", "state", "temporaries", "of the memory")]
    memory.append(("", "", "", "GiB", "GiB", ""))
    parts = ("compute", "memory", "network")
    work: list[tuple[str, ...]] = [("model", "TFLOP", *parts[1:], *parts, "step at least", "MFU up to", "estimate")]
    work.append(("", "", "GiB", "GiB", "ms", "ms", "ms", "ms", "", "ms"))
    moves = [("model", "exchange", "axes", "times", "MiB")]
    for name in models:
        one = figures[name]
        need = one["state_bytes"] + one["temporary_bytes"]
        size = f"{one['state_bytes'] / GIBI:.2f}", f"{one['temporary_bytes'] / GIBI:.2f}"
        share = f"{need / chip.memory_bytes:.0%}{'' if need <= chip.memory_bytes else ': does not fit'}"
        memory.append((name, f"{one['parameters']:,}", f"{one['compile_seconds']:.0f} s", *size, share))
        bound = roofline(chip, one["flops"], one["memory_traffic_bytes"], one["network_bytes"])
        utilisation = one["model_flops"] / (bound.seconds * chip.flops)
        estimate = (
            f"{1e3 * one['estimated_cycles'] / chip.clock:,.0f}" if chip.clock and one["estimated_cycles"] else ""
        )
        work.append(
            (
                name,
                f"{one['flops'] / 1e12:.1f}",
                f"{one['memory_traffic_bytes'] / GIBI:.1f}",
                f"{one['network_bytes'] / GIBI:.2f}",
                *(f"{1e3 * seconds:,.0f}" for seconds in bound),
                f"{1e3 * bound.seconds:,.0f}: {bound.limit}",
                f"{utilisation:.0%}",
                estimate,
            )
        )
        for move in one["collectives"]:
            moves.append((name, move["kind"], move["axes"], f"{move['times']:,}", f"{move['bytes'] / MEBI:,.1f}"))
    axes = ", ".join(f"{axis}:{size}" for axis, size in mesh.shape.items())
    print(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {axes}; figures of one chip")
    for table in (memory, work, moves):
        launcher.print_table(table)
        print()
    print(f"Everything is in {workdir}: {RESULTS}")


if __name__ == "__main__":
    sys.exit(main())
