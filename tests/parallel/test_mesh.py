"""Meshes from text, and the cores of a CPU as devices."""

import json
import os
import subprocess
import sys

import jax
import pytest

from nl_jax import InputError
from nl_jax.parallel import parse_mesh


def test_default_puts_all_devices_on_data():
    assert dict(parse_mesh().shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize("text", ["data:1", "tensor:1, data:1", "data:1,fsdp:1,tensor:1"])
def test_axes_left_out_have_size_one(text):
    assert dict(parse_mesh(text, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data:3", "asks for 3 devices, but there are 1"),
        ("data:2,fsdp:4", "asks for 8 devices, but there are 1"),
        ("model:1", "unknown axis 'model'"),
        ("data:1,data:1", "repeated axis 'data'"),
        ("data", "size of axis 'data' is ''"),
        ("data:0", "size of axis 'data' is '0'"),
        ("data:-1", "size of axis 'data' is '-1'"),
        ("data:1.5", "size of axis 'data' is '1.5'"),
        ("data:²", "size of axis 'data' is '²'"),
        ("data:1,", "unknown axis ''"),
        (",", "unknown axis ''"),
    ],
)
def test_bad_text_is_named(text, problem):
    with pytest.raises(InputError, match=problem) as error:
        parse_mesh(text, jax.devices()[:1])
    assert text in str(error.value)


FORCE = "--xla_force_host_platform_device_count=2"
OWN_CORE = ["--xla_cpu_multi_thread_eigen=false", "--xla_disable_hlo_passes=cpu-parallel-task-assigner"]


CASES = [  # sequences in a batch, flags that are set, what came before, devices, flags that are added
    (8, "", "", 4, []),  # fewer devices than cores
    (9, "", "", 3, []),
    (7, "", "", 1, []),
    (None, "", "", 6, OWN_CORE),
    (6, "--xla_cpu_multi_thread_eigen=true", "", 6, OWN_CORE[1:]),
    (6, "--xla_disable_hlo_passes=dce", "", 6, OWN_CORE[:1]),
    (8, FORCE, "", 2, []),
    (6, "", "jax.config.update('jax_num_cpu_devices', 6)", 6, []),
    (6, "", "jax.devices()", 1, []),
]
# A process for each case, since the number of devices is fixed when jax starts; forks, since imports take seconds.
FORKS = """
import json, os, sys, jax
from nl_jax.training import use_cpu_cores
os.sched_getaffinity = lambda process: range(6)
for batch_size, given, before in json.loads(sys.argv[1]):
    if not os.fork():
        os.environ["XLA_FLAGS"] = given
        exec(before)
        use_cpu_cores(batch_size)
        added = [flag for flag in os.environ["XLA_FLAGS"].split() if flag not in given.split()]
        print(json.dumps([len(jax.devices()), added]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def found():
    """Devices and added flags of each case. Of six cores."""
    command = [sys.executable, "-c", FORKS, json.dumps([case[:3] for case in CASES])]
    plain = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    lines = subprocess.run(command, env=plain, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    assert len(lines) == len(CASES)
    return dict(zip(map(str, CASES), map(json.loads, lines), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cores_as_devices(case, found):
    assert found[str(case)] == [*case[3:]]
