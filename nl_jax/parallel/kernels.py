"""Which program runs what has a kernel (Pallas), and each device's share of it.

XLA cannot split a kernel over devices, so each runs it for the sequences and heads that are its own.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from nl_jax.errors import InputError
from nl_jax.parallel.mesh import own_mesh
from nl_jax.parallel.sharding import mesh_axes

KERNELS = ("auto", "xla", "pallas")
# As "pallas", in the forms for a TPU and for a GPU, by Pallas' interpreter on any device: for tests, and slow.
INTERPRETED = ("interpret", "interpret_gpu")

_HOPPER_OR_LATER = re.compile(r"NVIDIA (GH|H|GB|B)\d{3}")

Outputs = TypeVar("Outputs")


def platform() -> str:
    """The platform of the devices for which a program is traced: those of the mesh that is set, else JAX's own.

    "gpu" is one of NVIDIA's from Hopper on; others have too little shared memory for the kernels, and go by their name.
    """
    device: Any = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None) or jax.local_devices()[0]
    if device.platform == "gpu" and not _HOPPER_OR_LATER.search(device.device_kind):
        return device.device_kind
    return device.platform


def choose_backend(kernel: str, fits: Callable[[str], bool]) -> str | None:
    """The backend of the kernel that runs something, or None for XLA's program.

    Args:
        kernel: "auto" for the kernel where it fits, on a TPU or GPU; "xla"; "pallas" for the kernel; or one of
            `INTERPRETED`.
        fits: whether a backend, "tpu" or "gpu", has a kernel for the sizes at hand.

    Raises:
        InputError: for "pallas" where no kernel can run.
    """
    if kernel in INTERPRETED:
        return kernel
    if kernel == "xla":
        return None
    found = platform()
    if found in ("tpu", "gpu") and fits(found) and (kernel == "pallas" or _knows_devices()):
        return found
    if kernel == "pallas":
        why = "has no kernel for these sizes and types" if found in ("tpu", "gpu") else "runs no kernels"
        raise InputError(f"kernel=pallas: {found} {why}; expected auto or xla")
    return None


def _knows_devices() -> bool:
    """Whether it is known how arrays lie on devices: by our mesh, or since there is one device."""
    return own_mesh() is not None or jax.device_count() == 1


def over_heads(function: Callable[..., Outputs], *arguments: Any) -> Outputs:
    """``function(*arguments)``, where each device has its own sequences and heads.

    Args:
        function: takes pytrees of arrays [batch, heads, ...] and returns such; rows do not depend on each other.
        *arguments: the arrays.
    """
    mesh = own_mesh()
    names = set() if mesh is None else {name for name in mesh.axis_names if name not in mesh.manual_axes}
    if mesh is None or all(mesh.shape[name] == 1 for name in names):
        return function(*arguments)
    batch, heads = jax.tree.leaves(arguments)[0].shape[:2]
    spec = PartitionSpec(mesh_axes(mesh, "batch", batch), mesh_axes(mesh, "heads", heads))
    return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=names, check_vma=False)(*arguments)
