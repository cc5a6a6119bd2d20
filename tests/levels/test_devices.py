"""A schedule over eight devices, each test in a process of its own: their number is fixed when JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import level_cases
import numpy as np
import optax
from host_cases import environment
from level_cases import normal

from nl_jax import Schedule
from nl_jax.levels import Pair, by_backpropagation, from_memory, from_optax
from nl_jax.memory import Architecture


def on_devices(count):
    """A batch of streams, split over devices; parameters shared by them."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    memory = from_memory("memory", Architecture(4, 4, hidden=8, depth=2), period=4, batch=(8,), eta=0.5)

    def loss(p, x):
        return jnp.mean((jnp.tanh(x @ p["fast"]) @ p["slow"] - x) ** 2)

    gradients = by_backpropagation(loss, ["fast", "slow"])

    def flow(read, x):
        return gradients(read, x) | {"memory": Pair(x @ read("slow"), x)}

    levels = [
        memory,
        from_optax("fast", optax.adam(1e-2), jnp.eye(4)),
        from_optax("slow", optax.adam(1e-2), jnp.eye(4), period=8),
    ]
    schedule = Schedule(levels, flow)
    xs = jax.device_put(jnp.asarray(normal(16, 8, 4), jnp.float32), split)
    state = jax.jit(lambda key, x: schedule.init(key, x))(jax.random.key(0), xs[0])
    state = jax.jit(schedule.run)(state, xs)
    state = jax.jit(schedule.step)(state, xs[0])
    devices = len(state.levels["memory"].delta_w[0].sharding.device_set)
    return {"devices": devices, "leaves": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]}


def test_eight_devices_give_the_state_of_one():
    paths = {"PYTHONPATH": str(Path(level_cases.__file__).parent)}
    done = subprocess.run([sys.executable, __file__], env={**environment(8), **paths}, stdout=-1, check=True)
    report = json.loads(done.stdout)
    assert (report["one"]["devices"], report["eight"]["devices"]) == (1, 8)
    for one, eight in zip(report["one"]["leaves"], report["eight"]["leaves"], strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)


def test_import_asks_for_no_devices():
    code = "import jax, nl_jax; jax.config.update('jax_num_cpu_devices', 3); assert len(jax.devices()) == 3"
    plain = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=plain, check=True)


if __name__ == "__main__":
    print(json.dumps({"one": on_devices(1), "eight": on_devices(8)}))
