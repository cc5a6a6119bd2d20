"""Devices of a machine that is not here, for compiling ahead of time: a named TPU slice, or one GPU."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.experimental import topologies

from nl_jax._xla import set_default_flag
from nl_jax.errors import InputError

TPUS = ("v4", "v5e", "v5p", "v6e")
GPU_PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
# XLA's target configuration of an H100 with 80 GB.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
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
        InputError: for a name that is not a TPU and its sizes, or "h100".

    Examples:
        >>> from nl_jax.parallel import chip_of
        >>> chip_of("v5e:16x16")
        'v5e'
    """
    match = re.fullmatch(rf"({'|'.join(TPUS)}):\d{{1,3}}(x\d{{1,3}}){{1,2}}|(h100)", topology)
    if match is None:
        known = ", ".join(TPUS)
        raise InputError(f"topology {topology!r}: expected a TPU ({known}) and its sizes, such as v5e:16x16; or h100")
    return match[1] or match[3]


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice or of one GPU, which need not exist: programs compile for them, but cannot run.

    Args:
        topology: a TPU and the sizes of its torus, such as "v5e:16x16" or "v5p:8x8x16"; or "h100", one GPU, for which
            this must be called before JAX starts.

    Raises:
        InputError: for a topology that the compiler does not know, or if the compiler is not installed.

    Examples:
        >>> from nl_jax import InputError
        >>> from nl_jax.parallel import topology_devices
        >>> try:
        ...     topology_devices("v9:4x4")  # "v5e:4x4" gives 16 devices, with pip install 'jax[tpu]'
        ... except InputError as error:
        ...     print(error)
        topology 'v9:4x4': expected a TPU (v4, v5e, v5p, v6e) and its sizes, such as v5e:16x16; or h100
    """
    is_gpu = chip_of(topology) == "h100"
    try:
        if is_gpu:
            _find_gpu_compiler(topology)
            found = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology="1x1x1")
        else:
            for name, value in _NO_SERVER.items():
                os.environ.setdefault(name, value)
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except InputError:
        raise
    except Exception as error:  # XLA has no common class of errors
        why = str(error).splitlines()[0][:160]
        if "not installed" in why:
            raise InputError(f"topology {topology!r}: needs the TPU compiler: pip install 'jax[tpu]'") from error
        raise InputError(f"topology {topology!r}: its compiler does not know it ({why})") from error
    return found.devices


def _find_gpu_compiler(topology: str) -> None:
    """Tells XLA where the CUDA compiler is, which the package registry has in parts."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(path) / "cu13" for path in (spec.submodule_search_locations or () if spec else ())]
    place = next((path for path in places if (path / "nvvm").is_dir()), None)
    if place is None or importlib.util.find_spec("jax_plugins") is None:
        raise InputError(f"topology {topology!r}: needs the GPU compiler: pip install {' '.join(GPU_PACKAGES)}")
    set_default_flag("xla_gpu_cuda_data_dir", str(place))
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(place / "bin")))
