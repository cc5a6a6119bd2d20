"""Checkpoints: what is saved comes back, and damage costs the newest checkpoint only."""

import contextlib
import json
import os
import re
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from launcher_cases import disk_of, error_line, fill, small_files

from experiments.common import launcher
from nl_jax import InputError
from nl_jax.training import CheckpointWriter, MetricsWriter, restore_newest
from nl_jax.training.digests import digests_of

# Of a read that fails Orbax leaves the others under way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_iterator():
    return iter(grain.MapDataset.range(100).seed(3).shuffle().repeat().batch(4).to_iter_dataset())


def state_of(step):
    key = jax.random.key(step)
    return {
        "model": {"kernel": jax.random.normal(key, (30, 40)), "scale": jnp.full(8, step, jnp.bfloat16)},
        "optimizer": ({"kernel": jax.random.normal(key, (30, 40))}, jnp.int32(step)),
    }


def files_under(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def contents(directory):
    """Of all files but those that Orbax's threads are still writing, which may go at any moment."""
    written = (path for path in files_under(directory) if ".orbax-checkpoint-tmp" not in str(path))
    return {path: path.read_bytes() for path in written}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 20 and 30 (that of 10 has been dropped), and the batch that follows each."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    iterator, following = make_iterator(), {}
    with CheckpointWriter(directory) as writer:
        for step in (10, 20, 30):
            next(iterator)
            writer.save(step, state_of(step), iterator, {"step": step})
            following[step] = next(iterator)
    return directory, following


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


def assert_is(checkpoint, iterator, step, following):
    assert (checkpoint.step, checkpoint.metadata) == (step, {"step": step})
    jax.tree.map(np.testing.assert_array_equal, checkpoint.items, state_of(step))
    assert jax.tree.structure(checkpoint.items) == jax.tree.structure(state_of(step))
    np.testing.assert_array_equal(next(iterator), following[step])


def test_newest_comes_back_with_the_iterator(saved):
    directory, following = saved
    before = contents(directory)
    iterator = make_iterator()
    assert_is(restore_newest(directory, state_of(0), iterator), iterator, 30, following)
    assert sorted(path.name for path in directory.iterdir()) == ["20", "30"]
    assert contents(directory) == before


def test_positions_of_earlier_versions_can_be_read(saved, tmp_path):
    """Grain wrote a file for each process, all of them alike."""
    source, following = saved
    directory = shutil.copytree(source, tmp_path / "checkpoints")
    position = json.loads((directory / "30/data/metadata").read_text())
    shutil.rmtree(directory / "30/data")
    for process in (0, 1):
        (directory / "30/data").mkdir(exist_ok=True)
        (directory / f"30/data/process_{process}-of-2.json").write_text(json.dumps(position, indent=4))
    iterator = make_iterator()
    assert_is(restore_newest(directory, state_of(0), iterator), iterator, 30, following)


def test_parts_can_be_restored_alone(saved):
    checkpoint = restore_newest(saved[0], {"model": state_of(0)["model"]})
    jax.tree.map(np.testing.assert_array_equal, checkpoint.items, {"model": state_of(30)["model"]})


def test_without_checkpoints_there_is_nothing(tmp_path):
    assert restore_newest(tmp_path / "missing", state_of(0)) is None
    assert not (tmp_path / "missing").exists()


@pytest.mark.slow
def test_any_truncated_file_is_noticed_or_does_not_matter(saved, tmp_path, caplog):
    source, following = saved
    skipped = 0
    for file in files_under(source / "30"):
        directory = shutil.copytree(source, tmp_path / "copy")
        os.truncate(directory / file.relative_to(source), file.stat().st_size // 2)
        caplog.clear()
        iterator = make_iterator()
        checkpoint = restore_newest(directory, state_of(0), iterator)
        assert_is(checkpoint, iterator, checkpoint.step, following)
        warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
        named = [
            message for message in warnings if message.startswith(f"skipped {directory / '30'}") and "\n" not in message
        ]
        assert len(named) == (checkpoint.step == 20)
        skipped += checkpoint.step == 20
        shutil.rmtree(directory)
    assert skipped >= 8  # array data and metadata, iterator, JSON; not Orbax's records of success


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


PARTS = {"model": "array kernel", "optimizer": "array 0.kernel", "about": "about", "data": "data"}


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_bit_is_noticed_and_the_checkpoint_before_is_used(part, saved, directory, caplog):
    """Orbax itself reads what is there: it has no digests of arrays."""
    if part in ("model", "optimizer"):
        file = max(files_under(directory / "30" / part), key=lambda file: file.stat().st_size)
        flip(file, file.stat().st_size // 2)
    else:
        (file,) = [file for file in files_under(directory / "30" / part) if file.name != "commit_success.txt"]
        flip(file, [place for place, byte in enumerate(file.read_bytes()) if chr(byte).isdigit()][-1])
    iterator = make_iterator()
    assert_is(restore_newest(directory, state_of(0), iterator), iterator, 20, saved[1])
    (warning,) = [message for message in caplog.messages if message.startswith(f"skipped {directory / '30'}")]
    assert f"ValueError: corrupted: {PARTS[part]}" in warning


def test_checkpoints_of_earlier_versions_have_no_digests(saved, directory):
    shutil.rmtree(directory / "30/digests")
    iterator = make_iterator()
    assert_is(restore_newest(directory, state_of(0), iterator), iterator, 30, saved[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_, jnp.int32])
def test_every_element_counts_in_a_digest_and_its_place(dtype):
    values = (np.arange(24).reshape(2, 3, 4) % 5 > 1).astype(dtype)

    def digest(values):
        return digests_of({"item": {"x": jnp.asarray(values)}}, {})["item"]["x"]

    changed = [values.copy() for _ in range(values.size)]
    for place, other in enumerate(changed):
        other.flat[place] = not other.flat[place]
    assert len({digest(values), *map(digest, changed), digest(values[::-1])}) == values.size + 2


def test_a_digest_does_not_depend_on_the_mesh():
    tree = {"x": jnp.arange(64.0).reshape(8, 8), "scalar": jnp.float32(3)}
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(tree["x"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data")))
    assert digests_of({"a": tree}, {}) == digests_of({"a": tree | {"x": split}}, {})


def test_a_run_that_goes_on_moves_the_damaged_one_aside(directory, caplog):
    (directory / "30/about/metadata").write_text("{")
    assert restore_newest(directory, state_of(0)).step == 20
    with CheckpointWriter(directory, resumed_from=20) as writer:
        writer.save(30, state_of(31), make_iterator(), {"step": 30})
    assert sorted(path.name for path in directory.iterdir()) == ["20", "30", "30.damaged"]
    assert (directory / "30.damaged/about/metadata").read_text() == "{"
    jax.tree.map(np.testing.assert_array_equal, restore_newest(directory, state_of(0)).items, state_of(31))


def test_all_damaged_is_an_error_and_changes_nothing(directory):
    for step in ("20", "30"):
        os.truncate(directory / step / "model/_METADATA", 5)
    before = contents(directory)
    with pytest.raises(InputError, match="none of the checkpoints 30, 20 can be read") as error:
        restore_newest(directory, state_of(0))
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)
    assert contents(directory) == before


def test_partly_written_is_skipped(directory, caplog):
    (directory / "30").rename(directory / "30.orbax-checkpoint-tmp")
    assert restore_newest(directory, state_of(0)).step == 20
    assert "partly written" in caplog.text
    with CheckpointWriter(directory, resumed_from=20) as writer:
        writer.save(30, state_of(30), make_iterator(), {"step": 30})
    assert sorted(path.name for path in directory.iterdir()) == ["20", "30"]


def test_another_shape_is_not_restored(directory):
    templates = state_of(0)
    templates["model"]["kernel"] = jnp.zeros((30, 41))
    with pytest.raises(InputError, match="can be read"):
        restore_newest(directory, templates)


def test_what_is_saved_does_not_change_after_save_returns(tmp_path):
    """The arrays are donated to the next step while the files are still being written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = {"model": {"kernel": jnp.ones((1000, 1000))}}
    iterator = make_iterator()
    with CheckpointWriter(tmp_path / "checkpoints") as writer:
        writer.save(1, state, iterator, {})
        for _ in range(20):
            state = step(state)
            next(iterator)
    templates = {
        "model": {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=state["model"]["kernel"].sharding)}
    }
    restored = restore_newest(tmp_path / "checkpoints", templates, iterator)
    np.testing.assert_array_equal(restored.items["model"]["kernel"], np.ones((1000, 1000)))
    np.testing.assert_array_equal(next(iterator), next(make_iterator()))


@pytest.mark.parametrize("name", ["40", "photos.orbax-checkpoint-tmp"])
def test_what_only_has_a_checkpoints_name_is_left_alone(name, directory):
    (directory / name).mkdir()
    (directory / name / "photo.jpg").write_bytes(b"mine")
    before = contents(directory)
    with pytest.raises(InputError, match=f"{name}: has a checkpoint's name and is none"):
        CheckpointWriter(directory, resumed_from=30)
    assert contents(directory) == before


@pytest.mark.parametrize("text", ["my notes", "my notes\n", '{"model": "a"}\n'])
def test_a_metrics_file_of_something_else_is_left_alone(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: expected"):
        MetricsWriter(tmp_path, "toy")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("metrics.jsonl", text)]


@pytest.fixture(params=["limit", "disk"])
def full(request, saved, tmp_path):
    """A directory with the checkpoints, and a context in which nothing more can be written there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param == "disk":
            stack.enter_context(disk_of(disk, 1_000_000))
        shutil.copytree(saved[0], disk / "checkpoints")
        if request.param == "disk":
            fill(disk)
        yield disk, small_files(100) if request.param == "limit" else contextlib.nullcontext()


def test_a_full_disk_is_one_line_and_costs_nothing_that_is_saved(full, capsys):
    disk, in_full = full
    directory = disk / "checkpoints"
    before = contents(directory)

    def body(values):
        with CheckpointWriter(directory, 30) as writer:
            writer.save(40, state_of(40), make_iterator(), {"step": 40})

    with in_full:
        assert launcher.run(body, flags.FlagValues(), "", ["x"]) == 3
    line = error_line(capsys)
    assert re.search(r"could not be written \((No space left on device|File too large)\); there: 30, 20", line), line
    assert before.items() <= contents(directory).items()
    assert restore_newest(directory, state_of(0)).step == 30


def test_metrics_on_a_full_disk_are_an_error_at_once(full, capfd):
    disk, in_full = full

    def write():
        with in_full, MetricsWriter(disk, "toy") as metrics:
            for step in range(10_000):
                metrics.write(step, step, {"loss": 1.0})

    with pytest.raises(OSError, match=r"No space left|File too large"):
        write()
    assert capfd.readouterr().err == ""
