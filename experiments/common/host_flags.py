"""The flags by which several processes train one model, and joining them."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from nl_jax import InputError
from nl_jax.parallel.hosts import ENVIRONMENT, Hosts, agree, find_hosts, is_writer, join

HOST_FLAGS = ("coordinator", "num_processes", "process_id", "start_timeout")


def define_host_flags(values: flags.FlagValues) -> None:
    """Adds the flags, without parsing them."""

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(
        flags.DEFINE_string,
        "coordinator",
        None,
        "HOST:PORT of process 0, if several processes train together. All run the same command with the same text and "
        "shared storage. In Slurm, Open MPI and TPU pods these three flags are not needed; elsewhere they can be given "
        f"as {', '.join(ENVIRONMENT.values())}.",
    )
    define(
        flags.DEFINE_integer,
        "num_processes",
        None,
        "Processes that train together; 1 in a cluster if this process is alone.",
    )
    define(flags.DEFINE_integer, "process_id", None, "Index of this process, from 0; process 0 writes the results.")
    define(flags.DEFINE_integer, "start_timeout", 50, "Seconds to wait until all processes have started.")


def remove_host_flags(values: flags.FlagValues) -> None:
    """Removes the flags, for a launcher that runs in one process only."""
    for name in HOST_FLAGS:
        delattr(values, name)


def hosts_of(values: flags.FlagValues) -> Hosts | None:
    """The processes that train together by the parsed flags or the environment, or None if there is only this one.

    Raises:
        InputError: for bad flags, or if there are several processes and the launcher runs in one only.
    """
    if "coordinator" not in values:
        if os.environ.get(ENVIRONMENT["num_processes"], "1") != "1":
            given = f"{ENVIRONMENT['num_processes']}={os.environ[ENVIRONMENT['num_processes']]}"
            raise InputError(f"{given}: expected 1, or none, since this launcher runs in one process")
        return None
    if values.start_timeout < 1:
        raise InputError(f"--start_timeout={values.start_timeout}: expected at least 1")
    return find_hosts(values.coordinator, values.num_processes, values.process_id, values.start_timeout)


def join_hosts(hosts: Hosts, timeout_seconds: int, same: Mapping[str, Any]) -> None:
    """Joins the other processes, and makes sure that they run the same; JAX starts here.

    Args:
        hosts: from `hosts_of`.
        timeout_seconds: how long to wait for them.
        same: what must be the same on all processes, beside the devices, by name.
    """
    join(hosts, timeout_seconds)
    if not is_writer():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    agree({**{name: str(value) for name, value in same.items()}, "devices": devices})
