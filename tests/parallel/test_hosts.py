"""Processes of one run: how they are found, what they exchange, and that two train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from host_cases import ends_of, environment, free_port, start
from toy_model import Toy

from nl_jax import InputError
from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
from nl_jax.parallel import batch_sharding, hosts, local_rows, parse_mesh, place_batch, place_local_rows
from nl_jax.training import TrainingInterrupted, fit, make_optimizer, read_metrics

TEXT = Path(hosts.__file__).read_bytes()
PACKED = pack([Document("hosts.py", TEXT)], ByteTokenizer())
SIZES = {"batch_size": 4, "seq_len": 16}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Leaves out what this machine's environment says about processes."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_")) or name in hosts.ENVIRONMENT.values():
            monkeypatch.delenv(name)


# Who the processes are.


def test_a_process_is_alone_unless_something_says_otherwise(monkeypatch):
    assert hosts.find_hosts() is None
    assert hosts.find_hosts("127.0.0.1:1", 1, 0) is None
    assert not hosts.several()
    assert hosts.is_writer()


def test_flags_come_before_the_environment_and_that_before_the_cluster(monkeypatch):
    slurm = {"JOB_ID": "70", "STEP_NODELIST": "node[07-09],x", "NTASKS": "3", "PROCID": "2", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert hosts.find_hosts() == ("node07:61510", 3, 2, 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    assert hosts.find_hosts() == ("10.0.0.1:8476", 3, 1, 0)
    assert hosts.find_hosts("[::1]:80", 4, 3) == ("[::1]:80", 4, 3, 0)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    assert hosts.find_hosts() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), "coordinator: missing"),
        (("a:1", None, 0), "num_processes: missing"),
        (("a:1", 2, None), "process_id: missing"),
        (("a", 2, 0), "coordinator=a: expected HOST:PORT"),
        (("a:b", 2, 0), "coordinator=a:b: expected HOST:PORT"),
        (("a:1", 0, 0), "num_processes=0: expected at least 1"),
        (("a:1", "many", 0), "num_processes=many: expected at least 1"),
        (("a:1", 2, 2), "process_id=2: expected 0 to 1"),
        (("a:1", 2, -1), "process_id=-1: expected at least 0"),
    ],
)
def test_bad_values_are_named(given, message):
    with pytest.raises(InputError, match=message):
        hosts.find_hosts(*given)


def test_an_absent_coordinator_is_an_error_before_jax_tries():
    started = time.monotonic()
    with pytest.raises(InputError, match="nobody listens there after 1 s"):
        hosts.join(hosts.Hosts(f"127.0.0.1:{free_port()}", 2, 1), 1)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("mine", [True, False])
def test_an_address_at_which_process_0_cannot_listen(mine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}" if mine else "192.0.2.1:8476"  # an address of nobody
        with pytest.raises(InputError, match="another program listens there" if mine else "Cannot assign"):
            hosts.join(hosts.Hosts(address, 2, 0), 1)


# Which rows a process holds.

ROWS = """
import jax, json, numpy as np
from nl_jax.parallel import local_rows, parse_mesh, place_batch, place_local_rows
batch = {"inputs": np.arange(40).reshape(8, 5)}
for mesh in map(parse_mesh, ("data:4", "data:2,tensor:2", "tensor:4", "data:2,fsdp:2")):
    assert local_rows(mesh, 8).tolist() == list(range(8))
    for placed in (place_batch(mesh, batch), place_local_rows(mesh, batch)):
        np.testing.assert_array_equal(placed["inputs"], batch["inputs"])
"""


def test_one_process_holds_all_rows_of_any_mesh():
    mesh, batch = parse_mesh("data:1", jax.devices()[:1]), {"inputs": np.arange(40).reshape(8, 5)}
    np.testing.assert_array_equal(local_rows(mesh, 8), np.arange(8))
    for placed in (place_batch(mesh, batch), place_local_rows(mesh, batch)):
        np.testing.assert_array_equal(placed["inputs"], batch["inputs"])
        assert placed["inputs"].sharding == batch_sharding(mesh)


@pytest.mark.slow
def test_one_process_holds_all_rows_of_several_devices():
    subprocess.run([sys.executable, "-c", ROWS], env=environment(4), check=True, timeout=300)


# Two processes.


def train(workdir, mesh, signal_before=0):
    """Trains for six steps; this process gets SIGTERM before one of them."""
    iterator = train_iterator(PACKED, **SIZES, seed=0, rows=local_rows(mesh, 4))
    if signal_before:
        original, left = iterator.__next__, iter(range(1, 100))

        class Signalled(type(iterator)):
            def __next__(self):
                if next(left) == signal_before:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original()

        iterator.__class__ = Signalled
    fit(
        "toy",
        lambda: Toy(nnx.Rngs(0)),
        make_optimizer(learning_rate=1e-2, steps=6),
        iterator,
        evaluation_batches(PACKED, **SIZES, max_tokens=256),
        workdir=workdir,
        mesh=mesh,
        steps=6,
        eval_every=3,
        checkpoint_every=2,
    )


def error_of(call):
    try:
        call()
    except (InputError, OSError, TrainingInterrupted) as error:
        return f"{type(error).__name__}: {error}"


def one_of_two(coordinator, process, workdir):
    """What one process of two does; prints what it has seen."""
    workdir = Path(workdir)
    hosts.join(hosts.Hosts(coordinator, 2, process))
    hosts.agree({"version": "1"})
    vote = hosts.StopVote(parse_mesh("data:2"))
    seen = {
        "writer": hosts.is_writer(),
        "value": hosts.from_writer(lambda: {"by": process}),
        "error": error_of(lambda: hosts.from_writer(lambda: (workdir / "missing").read_text())),
        "all": [hosts.all_true(True), hosts.all_true(process == 0)],
        "votes": [vote(15 if (process, step) == (1, 1) else None) for step in range(4)],
        "rows": [local_rows(parse_mesh(mesh), 4).tolist() for mesh in ("data:2", "fsdp:2", "tensor:2")],
        "stopped": error_of(lambda: train(workdir, parse_mesh("data:2"), signal_before=3 * process)),
    }
    train(workdir, parse_mesh("tensor:2"))  # goes on from there
    seen["disagreement"] = error_of(lambda: hosts.agree({"steps": str(process), "version": "1"}))
    print(json.dumps(seen))
    hosts.leave()


def losses(workdir):
    return [[row["step"], row.get("loss", row.get("validation_bits_per_byte"))] for row in read_metrics(workdir)]


def test_two_processes_exchange_and_train_as_one(tmp_path):
    coordinator, script = f"127.0.0.1:{free_port()}", "import test_hosts, sys; test_hosts.one_of_two(*sys.argv[1:])"
    script = script.replace("*sys.argv[1:]", "sys.argv[1], int(sys.argv[2]), sys.argv[3]")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1] / "common")])
    commands = [["-c", script, coordinator, str(process), str(tmp_path / "two")] for process in (0, 1)]
    ends, _ = ends_of([start(command, PYTHONPATH=path) for command in commands], timeout=120)
    assert [code for code, _, _ in ends] == [0, 0], ends
    first, second = (json.loads(out.splitlines()[-1]) for _, out, _ in ends)  # after gloo's lines
    assert (first.pop("writer"), second.pop("writer")) == (True, False)
    assert (first.pop("rows"), second.pop("rows")) == ([[0, 1], [0, 1], [0, 1, 2, 3]], [[2, 3], [2, 3], [0, 1, 2, 3]])
    assert first == second
    assert first["value"] == {"by": 0}
    assert first["error"].startswith("OSError: [Errno 2]") or first["error"].startswith("FileNotFoundError")
    assert first["all"] == [True, False]
    assert first["votes"] == [None, None, 15, None]
    assert first["stopped"] == "TrainingInterrupted: toy: stopped after step 4, which is saved"
    assert first["disagreement"].startswith(
        "InputError: the processes of this run disagree: steps is 0 on process 0, 1 on process 1"
    )
    train(tmp_path / "one", parse_mesh("data:1", jax.devices()[:1]))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
