"""Devices of a machine that is not here, for compiling ahead of time: a named TPU slice, or one GPU."""

import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from nl_jax.errors import InputError

TPUS = ("v4", "v5e", "v5p", "v6e")
# libtpu asks the metadata server of a cloud for these, and waits for minutes where there is none
_NO_SERVER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def chip_of(topology: str) -> str:
    """The chip's name in the name of a topology, such as "v5e" in "v5e:16x16".

    Raises:
        InputError: for a name that is not a TPU and its sizes.
    """
    match = re.fullmatch(rf"({'|'.join(TPUS)}):\d{{1,3}}(x\d{{1,3}}){{1,2}}", topology)
    if match is None:
        known = ", ".join(TPUS)
        raise InputError(f"topology {topology!r}: expected a TPU ({known}) and its sizes, such as v5e:16x16")
    return match[1]


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice, which need not exist: programs can be compiled for them, but not run.

    Args:
        topology: a TPU and the sizes of its torus, such as "v5e:16x16" or "v5p:8x8x16".

    Raises:
        InputError: for a topology that the compiler does not know, or if the compiler, libtpu, is not installed.
    """
    chip_of(topology)
    for name, value in _NO_SERVER.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # XLA has no common class of errors
        why = str(error).splitlines()[0][:160]
        if "not installed" in why:
            raise InputError(f"topology {topology!r}: needs the TPU compiler: pip install libtpu") from error
        raise InputError(f"topology {topology!r}: the TPU compiler does not know it ({why})") from error
