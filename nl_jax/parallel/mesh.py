"""The device mesh: which devices split the batch, the parameters and the heads.

A mesh always has the four axes of `AXES`, so that shardings need no special cases: an axis that is not requested has
size 1. ``data`` splits the batch, ``fsdp`` splits the batch and the parameters, ``tensor`` splits heads and hidden
units, and ``sequence`` splits the tokens of a text.
"""

import os
import re
from collections.abc import Sequence
from math import prod
from typing import Any

import jax

from nl_jax._xla import set_default_flag
from nl_jax.errors import InputError

AXES = ("data", "fsdp", "tensor", "sequence")


def use_cpu_cores(batch_size: int | None = None) -> None:
    """Makes each CPU core a JAX device, so that a mesh can split a batch over the cores.

    By default JAX sees the CPU as one device, within which the small matrix products of memories leave cores idle;
    training on two devices of one core each is a quarter faster (BUILD_NOTES.md, D55). Threading inside an operation is
    off when each core is a device. Call this before JAX starts: afterwards it does nothing. It also does nothing if the
    user has set the number of CPU devices, and it keeps flags that are in ``XLA_FLAGS``.

    Args:
        batch_size: if given, the number of devices is the largest number up to the number of cores that divides it.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import use_cpu_cores
        >>> before = jax.device_count()
        >>> use_cpu_cores(batch_size=8)  # JAX has started: too late
        >>> jax.device_count() == before
        True
    """
    config: Any = jax.config
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or config.jax_num_cpu_devices != -1:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(n for n in range(1, cores + 1) if batch_size is None or batch_size % n == 0)
    try:
        config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started
        return
    if count == cores:  # otherwise XLA splits every operation over all cores, also those of other devices
        set_default_flag("xla_cpu_multi_thread_eigen", "false")
        set_default_flag("xla_disable_hlo_passes", "cpu-parallel-task-assigner")


def parse_mesh(text: str | None = None, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Builds a mesh from text such as ``"data:2,fsdp:4"``.

    Args:
        text: ``axis:size`` pairs separated by commas, in any order; an axis left out has size 1. None or empty text
            puts all devices on ``data``.
        devices: the devices to use; by default all devices of all hosts.

    Returns:
        A mesh with the axes of `AXES`, in that order.

    Raises:
        InputError: for an unknown or repeated axis, a size that is not a positive integer, or sizes whose product is
            not the number of devices.

    Examples:
        >>> import jax
        >>> from nl_jax.parallel import parse_mesh
        >>> mesh = parse_mesh("data:1", jax.devices()[:1])  # the other axes have size 1
        >>> dict(mesh.shape)
        {'data': 1, 'fsdp': 1, 'tensor': 1, 'sequence': 1}
    """
    devices = jax.devices() if devices is None else devices
    sizes = _parse_sizes(text) if text else {"data": len(devices)}
    if prod(sizes.values()) != len(devices):
        raise InputError(f"mesh {text!r} asks for {prod(sizes.values())} devices, but there are {len(devices)}")
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)


def own_mesh() -> Any:
    """The mesh that is set (``jax.set_mesh``), if `parse_mesh` can have made it; else None.

    Other meshes have other axes, and the partitioner decides what lies where. The axis ``sequence`` may be manual, as
    it is inside of `nl_jax.parallel.sequence.over_sequence`.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    automatic = all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types) or mesh.manual_axes == ("sequence",)
    return mesh if mesh.axis_names == AXES and automatic else None


def _parse_sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for pair in text.split(","):
        axis, _, size = pair.strip().partition(":")
        if axis not in AXES or axis in sizes:
            problem = "repeated" if axis in sizes else "unknown"
            raise InputError(f"mesh {text!r}: {problem} axis {axis!r}; expected axis:size with axes {', '.join(AXES)}")
        if not re.fullmatch("[1-9][0-9]{0,5}", size):
            raise InputError(f"mesh {text!r}: size of axis {axis!r} is {size!r}; expected a positive integer")
        sizes[axis] = int(size)
    return sizes
