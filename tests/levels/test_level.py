"""A level by itself: what it refuses, sums of contexts, a state whose arrays are its own."""

import jax
import jax.numpy as jnp
import pytest
from level_cases import assert_own_buffers, levels_that_share, scanned, still

from nl_jax import Level, Schedule


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.int32, jnp.uint8, jnp.uint32, jnp.bool_, jnp.float16])
@pytest.mark.parametrize("period", [4, 6])  # scans and conditions
def test_sums_of_narrow_contexts_do_not_overflow(dtype, period):
    level = Level("sum", period, lambda key, data: 0.0, lambda state, total: total.astype(float), gather="sum")
    schedule = Schedule([level, Level("other", 4, lambda key, data: 0.0, lambda state, _: state)])
    most = 1 if dtype == jnp.bool_ else 60000 if dtype == jnp.float16 else min(jnp.iinfo(dtype).max, 2**24)
    data = {name: jnp.full(12, most, dtype) for name in ("sum", "other")}
    state = schedule.init(None, jax.tree.map(lambda x: x[0], data))
    for found in (schedule.run(state, data), scanned(schedule, state, data)[0]):
        assert found.levels["sum"] == period * most


@pytest.mark.parametrize("name", ["slow", "loss", "memory", "given", "deep", "kept"])
def test_a_level_alone_can_be_donated(name):
    levels, data = levels_that_share()
    (level,) = (level for level in levels if level.name == name)
    first = level.init(jax.random.key(0), data)
    assert_own_buffers(first, data["slow"])
    jax.block_until_ready(jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)(first))
    assert_own_buffers(level.init(jax.random.key(0), data), data["slow"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 0}, "period=0: expected"),
        ({"period": 1.5}, "period=1.5: expected"),
        ({"period": True}, "period=True: expected"),
        ({"gather": "mean"}, "gather='mean': expected"),
        ({"starts_from": "other"}, "starts_from='other' needs"),
    ],
)
def test_a_bad_option_names_the_level(options, message):
    with pytest.raises(ValueError, match=f"level 'slow': {message}"):
        still("slow", **options)
