"""Meshes from text, and the cores of a CPU as devices."""

import os
import subprocess
import sys

import jax
import pytest

from nl_jax import InputError
from nl_jax.training import parse_mesh, use_cpu_cores


def test_default_puts_all_devices_on_data():
    assert dict(parse_mesh().shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("text", ["data:1", "tensor:1, data:1", "data:1,fsdp:1,tensor:1"])
def test_axes_left_out_have_size_one(text):
    assert dict(parse_mesh(text, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


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


@pytest.mark.parametrize(
    ("batch_size", "flags", "before", "count"),
    [
        (8, "", "", 4),
        (9, "", "", 3),
        (7, "", "", 1),
        (None, "", "", 6),
        (8, "--xla_force_host_platform_device_count=2", "", 2),
        (8, "", "jax.config.update('jax_num_cpu_devices', 3)", 3),
        (8, "", "jax.devices()", 1),
    ],
)
def test_cores_as_devices(batch_size, flags, before, count):
    """In a process of its own, since the number of devices is fixed when jax starts. Of six cores."""
    lines = [
        "import os, jax",
        "from nl_jax.training import use_cpu_cores",
        "os.sched_getaffinity = lambda process: range(6)",
        before,
        f"use_cpu_cores({batch_size})",
        "print(len(jax.devices()))",
    ]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "\n".join(lines)]
    assert int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout) == count


@pytest.mark.parametrize(
    ("batch_size", "given", "expected"),
    [
        (6, "", ["--xla_cpu_multi_thread_eigen=false", "--xla_disable_hlo_passes=cpu-parallel-task-assigner"]),
        (6, "--xla_cpu_multi_thread_eigen=true", ["--xla_disable_hlo_passes=cpu-parallel-task-assigner"]),
        (6, "--xla_disable_hlo_passes=dce", ["--xla_cpu_multi_thread_eigen=false"]),
        (3, "", []),  # two cores for each device
    ],
)
def test_flags_where_every_core_is_a_device(monkeypatch, batch_size, given, expected):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    use_cpu_cores(batch_size)
    assert os.environ["XLA_FLAGS"].split() == [*given.split(), *expected]
