"""Shardings: every parameter has a row, and a run split over 8 devices is the run of one device."""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from host_cases import environment
from jax.sharding import PartitionSpec as P

from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
from nl_jax.errors import InputError
from nl_jax.models import MODEL_NAMES, LanguageModel, named_config
from nl_jax.modules import mixer
from nl_jax.parallel import parameter_shardings, parse_mesh, state_shardings
from nl_jax.parallel.sharding import STATE_AXES
from nl_jax.parameter_axes import logical_axes
from nl_jax.training import fit, init_state, make_optimizer, read_metrics
from nl_jax.training.metrics import is_measured
from nl_jax.trees import named_leaves

PACKED = pack([Document("test", Path(__file__).read_bytes())], ByteTokenizer())
SIZES = {"batch_size": 8, "seq_len": 32}


def make_model(name):
    config = named_config(
        name, "tiny", 264, num_heads=2, chunk_size=16
    )  # sizes that 2 divides, and more than one chunk
    return LanguageModel(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_parameter_and_all_state_has_a_row(name):
    model = jax.eval_shape(functools.partial(make_model, name))
    for path, leaf in named_leaves(model).items():
        assert len(logical_axes(path) or ()) == len(leaf.shape), path
    state = jax.eval_shape(lambda model: model.init_state(8), model)
    for path, leaf in named_leaves(state).items():
        assert len(logical_axes(path, STATE_AXES) or ()) == len(leaf.shape), path


# Arrays of the shape of a parameter, itself included: of one that AdamW moves, and of a hidden matrix.
COPIES = {
    "adamw": (3, 3),
    "muon": (3, 2),
    "adamuon": (3, 3),
    "m3": (3, 5),
    "delta_momentum": (3, 2),
    "momentum": (3, 2),
}


@pytest.mark.parametrize("optimizer", COPIES)
def test_optimizer_state_is_split_as_its_parameters(optimizer):
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    levels = make_optimizer(optimizer=optimizer, steps=1, cms_periods=(1, 4))
    state = jax.eval_shape(lambda: init_state(lambda: make_model("hope"), levels))
    specs = {path: sharding.spec for path, sharding in named_leaves(parameter_shardings(mesh, state)).items()}
    other, matrix = COPIES[optimizer]
    for name, spec, count in [
        ("embed.embedding", P(("tensor",), ("fsdp",)), other),
        ("blocks.cms.levels.0.up.kernel", P(None, ("fsdp",), ("tensor",)), matrix),
        ("blocks.cms.levels.1.up.kernel", P(None, ("fsdp",), ("tensor",)), matrix + 1),  # and the sum of its gradients
        ("blocks.mixer.memories.0.layers.0", P(None, ("tensor",), ("fsdp",), None), matrix),
    ]:
        assert [spec for path, spec in specs.items() if path.endswith(name)] == [spec] * count
    assert {spec for path, spec in specs.items() if path.endswith("count")} == {P()}


def test_memory_state_is_split_over_batch_and_heads():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    for name, path, spec in [
        ("hope", "delta_w.0.0", P(None, ("data", "fsdp"), ("tensor",), None, None)),
        ("transformer", "keys", P(None, ("data", "fsdp"), None, ("tensor",), None)),
    ]:
        state = jax.eval_shape(lambda name=name: make_model(name).init_state(8))
        assert named_leaves(state_shardings(mesh, state))[path].spec == spec


def test_an_axis_that_does_not_divide_is_not_split():
    mesh = jax.sharding.AbstractMesh((1, 3, 2), ("data", "fsdp", "tensor"))
    tree = {"embed": {"embedding": jax.ShapeDtypeStruct((257, 66), np.float32)}}
    assert parameter_shardings(mesh, tree)["embed"]["embedding"].spec == P(None, ("fsdp",))


def test_fsdp_splits_another_axis_than_one_that_it_does_not_divide():
    """But not that of layers, of which a scan takes one at a time."""
    mesh = jax.sharding.AbstractMesh((1, 12, 1), ("data", "fsdp", "tensor"))
    memory = {"layers": [jax.ShapeDtypeStruct((24, 3, 128, 96), np.float32)]}
    norm = {"scale": jax.ShapeDtypeStruct((24, 128), np.float32)}
    tree = {"blocks": {"mixer": {"memories": [memory]}, "mixer_norm": norm}}
    blocks = parameter_shardings(mesh, tree)["blocks"]
    assert blocks["mixer"]["memories"][0]["layers"][0].spec == P(None, None, None, ("fsdp",))
    assert blocks["mixer_norm"]["scale"].spec == P(None, None)


@pytest.mark.parametrize(
    ("path", "shape", "found"), [("unknown", (257, 1024), "no row"), ("embedding", (257, 1, 1024), "a row of 2 axes")]
)
def test_a_large_array_without_a_row_is_refused_where_every_device_would_hold_it_whole(path, shape, found):
    tree = {"embed": {path: jax.ShapeDtypeStruct(shape, np.float32)}}
    for fsdp, tensor in ((2, 1), (1, 2)):
        mesh = jax.sharding.AbstractMesh((1, fsdp, tensor), ("data", "fsdp", "tensor"))
        with pytest.raises(InputError, match=rf"embed.{path}: 1.0 MiB would be whole on every device; found {found}"):
            parameter_shardings(mesh, tree)
    data_only = jax.sharding.AbstractMesh((2, 1, 1), ("data", "fsdp", "tensor"))
    assert parameter_shardings(data_only, tree)["embed"][path].spec == P()


EXACT = {"model", "step", "tokens"}


def bytes_per_device(tree):
    """Bytes on one device as a share of all."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


def train(name, mesh, workdir, steps):
    state, _ = fit(
        name,
        functools.partial(make_model, name),
        make_optimizer(learning_rate=1e-3, steps=4, warmup_steps=0),
        train_iterator(PACKED, **SIZES, seed=0),
        evaluation_batches(PACKED, **SIZES, max_tokens=256),
        workdir=workdir,
        mesh=mesh,
        steps=steps,
        eval_every=2,
        checkpoint_every=2,
    )
    return {"model": bytes_per_device(state.model), "optimizer": bytes_per_device(state.opt_state)}


# The mesh and how many parts it makes of parameters; of the Transformer also half-way to another mesh.
MESHES = {
    "hope": [("data:2,fsdp:2,tensor:2", 4, 4)],
    "transformer": [("fsdp:4,tensor:2", 8, 2), ("fsdp:2,tensor:2,sequence:2", 4, 4)],
}


def compare(name):
    """Trains on one of eight devices and then on all; prints what the test looks at."""
    with tempfile.TemporaryDirectory() as folder:
        one, eight = Path(folder, "one"), Path(folder, "eight")
        train(name, parse_mesh("data:1", jax.devices()[:1]), one, 4)
        shares = [train(name, parse_mesh(mesh), eight, steps) for mesh, _, steps in MESHES[name]]
        print(json.dumps({"one": read_metrics(one), "eight": read_metrics(eight), "shares": shares}))


def printed_by(argument, devices):
    """JSON that this file prints, in a process of its own, since the number of devices is fixed when jax starts."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}  # to which pytest has added what tests share
    command = [sys.executable, __file__, argument]
    done = subprocess.run(command, env={**environment(devices), **paths}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "hope" else name for name in MESHES]
)
def test_eight_devices_give_the_run_of_one(name):
    report = printed_by(name, devices=8)
    for expected, row in zip(report["one"], report["eight"], strict=True):
        assert {key: row[key] for key in row if key in EXACT} == {key: expected[key] for key in row if key in EXACT}
        for key in {key for key in expected if not is_measured(key)} - EXACT:
            assert row[key] == pytest.approx(expected[key], rel=1e-4), (row, expected)
    # Split over fsdp and tensor but for a few small vectors.
    for shares, (_, parts, _) in zip(report["shares"], MESHES[name], strict=True):
        assert 1 / parts <= shares["model"] < 1.02 / parts
        assert 1 / parts <= shares["optimizer"] < 1.02 / parts


def count_collectives():
    """Compiles the gradient of a mixer over a batch on two devices; prints all-reduces in its loops, and in all."""
    mesh = parse_mesh("data:2")
    module = mixer("self_modifying_titans", width=16, num_heads=2, chunk_size=8, rngs=nnx.Rngs(0))
    whole, split = (jax.sharding.NamedSharding(mesh, spec) for spec in (P(), P("data")))
    x = jax.ShapeDtypeStruct((2, 32, 16), np.float32, sharding=split)
    gradient = jax.jit(nnx.grad(lambda module, x: module(x)[0].sum()), in_shardings=(whole, split), out_shardings=whole)
    text = gradient.lower(module, x).compile().as_text()
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    loops = [computations[name] for name in re.findall(r"body=%?([\w.-]+)", text)]
    print(json.dumps([" all-reduce(" in body for body in loops] + [" all-reduce(" in text]))


@pytest.mark.slow
def test_devices_do_not_meet_at_every_chunk():
    """A parameter without the batch's axis inside the loop over chunks costs an all-reduce in each."""
    *loops, anywhere = printed_by("collectives", devices=2)
    assert len(loops) == 2
    assert not any(loops)
    assert anywhere


if __name__ == "__main__":
    count_collectives() if sys.argv[1] == "collectives" else compare(sys.argv[1])
