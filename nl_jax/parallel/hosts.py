"""Several processes that train one model: how they find each other, what they agree on, and which one writes.

Process 0 runs JAX's coordination service, by which processes exchange short texts and wait for each other. All
functions here work without it, too: then there is one process, which is its own writer.

All processes must call `agree`, `from_writer`, `all_true` and `StopVote` in the same order.
"""

import contextlib
import errno
import hashlib
import ipaddress
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nl_jax.errors import InputError, ProcessLost, StorageError

T = TypeVar("T")

HEARTBEAT_SECONDS = 10  # a process that is silent for so long is lost, and JAX ends the others
PATIENCE_SECONDS = 600  # longest wait for a process that is alive but slow, as in restoring a checkpoint
ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_rounds = itertools.count()  # distinguishes the keys of one exchange from those of the next


class Hosts(NamedTuple):
    """The processes of a run: the address of the coordinator, their number, and the index of this one.

    Attributes:
        local_device: the only GPU that this process uses, where the cluster starts one process for each.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device: int | None = None


def find_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 50,
) -> Hosts | None:
    """Finds out which processes belong to this run, without starting JAX.

    Each value that is None is read from the environment variable in `ENVIRONMENT`, and then from the cluster, if it is
    Slurm, Open MPI or a TPU pod.

    Args:
        coordinator: ``HOST:PORT`` at which process 0 listens.
        num_processes: number of processes; 1 if this process is alone, whatever the cluster says.
        process_id: index of this process, from 0.
        timeout_seconds: how long to wait for the name of a TPU pod's coordinator.

    Returns:
        The processes, or None if this process is the only one.

    Raises:
        InputError: for a value that is missing or invalid.
    """
    given = (coordinator, num_processes, process_id)
    pairs = zip(given, ENVIRONMENT.values(), strict=True)
    values = [os.environ.get(variable) or None if value is None else value for value, variable in pairs]
    if str(values[1]) == "1":
        return None
    cluster = _cluster()
    if cluster is not None:
        count = cluster.get_process_count() if values[1] is None else values[1]
        if count == 1:
            return None
        if values[0] is None:
            port = os.environ.get("JAX_COORDINATOR_PORT")
            values[0] = cluster.get_coordinator_address(timeout_secs=timeout_seconds, override_coordinator_port=port)
        values = [values[0], count, cluster.get_process_id() if values[2] is None else values[2]]
    if values == [None, None, None]:
        return None
    local = None if cluster is None else cluster.get_local_process_id()
    return _checked(*values)._replace(local_device=local)


def _cluster() -> Any:
    """JAX's class for the cluster that this process belongs to, or None. JAX has no public names for them."""
    from jax._src import clusters

    # Kubernetes is left out: JAX warns in every pod that its package is missing. Its users set the variables.
    for name in ("SlurmCluster", "OmpiCluster", "GceTpuCluster", "GkeTpuCluster"):
        cluster = getattr(clusters, name, None)
        if cluster is not None and cluster.is_env_present():
            return cluster
    return None


def _checked(coordinator: Any, num_processes: Any, process_id: Any) -> Hosts:
    """The processes by these values; raises `InputError` for one that is missing (None) or invalid."""
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:]+):[0-9]{1,5}|None", str(coordinator)):
        raise InputError(f"coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476")
    if not re.fullmatch("[1-9][0-9]*|None", str(num_processes)):
        raise InputError(f"num_processes={num_processes}: expected at least 1")
    if not re.fullmatch("[0-9]+|None", str(process_id)):
        raise InputError(f"process_id={process_id}: expected at least 0")
    for name, value in zip(ENVIRONMENT, (coordinator, num_processes, process_id), strict=True):
        if value is None:
            raise InputError(
                f"{name}: missing; expected coordinator=HOST:PORT, num_processes=N and process_id=I together, as "
                f"flags or as {', '.join(ENVIRONMENT.values())}"
            )
    hosts = Hosts(coordinator, int(num_processes), int(process_id))
    if hosts.process_id >= hosts.num_processes:
        raise InputError(f"process_id={process_id}: expected 0 to {hosts.num_processes - 1}")
    return hosts


def join(hosts: Hosts, timeout_seconds: int = 50) -> None:
    """Joins the other processes; call it before JAX starts, that is, before it is asked for devices.

    Process 0 listens only at the coordinator's own address (``JAX_COORDINATOR_BIND_ADDRESS`` overrides it). The others
    first try to connect to it in Python, since JAX ends the process with a stack trace if nobody listens.

    Args:
        hosts: from `find_hosts`.
        timeout_seconds: how long to wait for the coordinator, and then for all processes. If a process does not come,
            JAX aborts this one.

    Raises:
        InputError: if the coordinator cannot be reached, or process 0 cannot listen at its address.
    """
    host, _, port = hosts.coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    started, bind = time.monotonic(), None
    if hosts.process_id == 0:
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or _bind_address(hosts.coordinator, address)
    else:
        _wait_for_coordinator(hosts.coordinator, address, timeout_seconds)
    left = timeout_seconds - (time.monotonic() - started)
    # JAX would take SIGTERM for itself, and a process that compiles could not be stopped by it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        *hosts[:3],
        None if hosts.local_device is None or "JAX_LOCAL_DEVICE_IDS" in os.environ else [hosts.local_device],
        cluster_detection_method="deactivate",
        initialization_timeout=max(5, int(left)),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        coordinator_bind_address=bind,
    )


def _bind_address(coordinator: str, address: tuple[str, int]) -> str:
    """The address at which the coordinator listens, once it is known to be free and to belong to this machine."""
    try:
        family, *_, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
    except OSError as error:
        what = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise InputError(
            f"coordinator={coordinator}: process 0 cannot listen there ({what}); expected a free port of its own "
            "machine, or the address to listen at in JAX_COORDINATOR_BIND_ADDRESS"
        ) from error
    if ipaddress.ip_address(found[0]).is_loopback and not _is_loopback_name(address[0]):
        # Debian names a machine 127.0.1.1 in its own /etc/hosts, where the others could not reach it.
        logging.warning("coordinator=%s is a loopback address here: listening on all interfaces", coordinator)
        return f"[::]:{address[1]}"
    return coordinator


def _is_loopback_name(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _wait_for_coordinator(coordinator: str, address: tuple[str, int], timeout_seconds: float) -> None:
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            with socket.create_connection(address, timeout=5):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise InputError(
                    f"coordinator={coordinator}: nobody listens there after {timeout_seconds} s "
                    f"({error.strerror or error}); expected the address of process 0, which must run as well"
                ) from error
        time.sleep(0.2)


def _state() -> Any:
    """JAX's handle on the coordination service, which has no public name."""
    from jax._src import distributed

    return distributed.global_state


def several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def is_writer() -> bool:
    """Whether this process writes the run's files and prints its tables: process 0, or the only one."""
    return not several() or _state().process_id == 0


def barrier(name: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Waits until all processes are here.

    Raises:
        ProcessLost: if one of them does not come in time, or has ended.
    """
    if not several():
        return
    try:
        _state().client.wait_at_barrier(f"nl_jax/{name}", int(timeout_seconds * 1000))
    except Exception as error:  # JAX raises several classes
        raise ProcessLost(_reason(error)) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    lost = re.search(r"[Tt]ask (\d+) heartbeat|task names: (\d+)", text)
    return f"process {lost[1] or lost[2]} does not answer" if lost else text[:150]


def agree(what: Mapping[str, str]) -> None:
    """Makes sure that all processes have the same values; call it before the first computation that they share.

    Nothing else notices a difference: with other flags or data the processes would train on a mixture in silence.

    Args:
        what: values by name, as text.

    Raises:
        InputError: on every process, if a value differs; the message names values and processes.
        ProcessLost: if another process has ended, or does not come in `PATIENCE_SECONDS`.
    """
    if not several():
        return
    state, name = _state(), f"agree/{next(_rounds)}"
    own = json.dumps(dict(what), sort_keys=True)
    state.client.key_value_set(f"{name}/values/{state.process_id}", own)
    digest = hashlib.sha256(own.encode()).hexdigest()
    state.client.key_value_set(f"{name}/digests/{state.process_id}", digest)
    barrier(f"{name}/written")
    digests = {int(key.rpartition("/")[2]): text for key, text in state.client.key_value_dir_get(f"{name}/digests/")}
    others = sorted(process for process, text in digests.items() if text != digests[0])
    if not others:
        return
    here, there = (
        json.loads(state.client.blocking_key_value_get(f"{name}/values/{process}", 10_000))
        for process in (0, others[0])
    )
    _let_read(name)
    differences = [
        f"{key} is {here.get(key)} on process 0, {there.get(key)} on process {others[0]}"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    more = f" (processes {', '.join(map(str, others[:20]))} differ from process 0)" if len(others) > 1 else ""
    raise InputError(f"the processes of this run disagree: {'; '.join(differences)}{more}; expected the same on all")


_ERRORS: dict[str, Callable[[str], Exception]] = {"InputError": InputError, "StorageError": StorageError}


def from_writer(compute: Callable[[], T]) -> T:
    """What ``compute`` returns on the writer, on every process; it must be JSON. Only the writer calls it.

    Raises:
        InputError, OSError: on every process, if ``compute`` raises it on the writer.
    """
    if not several():
        return compute()
    client, key = _state().client, f"nl_jax/writer/{next(_rounds)}"
    if is_writer():
        try:
            value = compute()
        except (InputError, OSError) as error:
            client.key_value_set(key, json.dumps({"error": [type(error).__name__, *_parts(error)]}))
            _let_read(key)
            raise
        client.key_value_set(key, json.dumps({"value": value}))
        return value
    try:
        answer = json.loads(client.blocking_key_value_get(key, PATIENCE_SECONDS * 1000))
    except Exception as error:  # JAX raises several classes
        raise ProcessLost(_reason(error)) from error
    if "error" in answer:
        _let_read(key)
        name, *parts = answer["error"]
        raise _ERRORS[name](*parts) if name in _ERRORS else OSError(*parts)
    return answer["value"]


def _let_read(name: str) -> None:
    """Waits until all processes have read why the run ends: the first one that ends takes the others with it."""
    with contextlib.suppress(ProcessLost):
        barrier(f"{name}/read", 60)


def _parts(error: Exception) -> list[Any]:
    if isinstance(error, OSError) and error.errno is not None:
        return [error.errno, error.strerror, None if error.filename is None else str(error.filename)]
    return [str(error)]


def all_true(mine: bool) -> bool:
    """Whether ``mine`` is true on every process."""
    if not several():
        return mine
    state, name = _state(), f"all/{next(_rounds)}"
    state.client.key_value_set(f"{name}/{state.process_id}", str(mine))
    barrier(name)
    return all(text == "True" for _, text in state.client.key_value_dir_get(f"{name}/"))


class StopVote:
    """Tells all processes at the same step that one of them has received a signal.

    Each step sends the process' signal, if any, through a maximum over the mesh, and reads the one that the step before
    has sent. So no step waits for the exchange, and all processes read the same. A single process exchanges nothing.

    Args:
        mesh: the mesh on which the run trains.
    """

    def __init__(self, mesh: Mesh):
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._maximum = jax.jit(lambda votes: votes.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._sent: jax.Array | None = None

    def __call__(self, received: int | None) -> int | None:
        """Sends the signal that this process has received, and returns the one at which all processes must stop."""
        if not several():
            return received
        before = self._sent
        vote = np.full(1, received or 0, np.int32)
        votes = jax.make_array_from_callback((self._split.mesh.size,), self._split, lambda index: vote)
        self._sent = self._maximum(votes)
        return None if before is None else int(before) or None


def leave(timeout_seconds: float = 3) -> None:
    """Lets the other processes finish what they say before this one ends, since its end aborts them."""
    with contextlib.suppress(ProcessLost):
        barrier("leave", timeout_seconds)


def finish() -> None:
    """Waits until all processes have finished, and leaves the run."""
    if several():
        jax.distributed.shutdown()
