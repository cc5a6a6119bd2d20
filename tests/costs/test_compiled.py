"""What a compiled program moves: texts with known answers, and programs that XLA compiles for 8 devices."""

import json
import os
import subprocess
import sys

import pytest

from nl_jax.costs import traffic
from nl_jax.costs.compiled import Collective
from nl_jax.errors import InputError

# A loop that counts to 8 in steps of 2, and gathers in the fast memory (S(1)) what lies there; a slice of a stack in a
# fusion inside a fusion; an update in place; a scatter as a TPU spells it.
TEXT = """HloModule jit_step, is_scheduled=true

%inner (p0: f32[64,4,128], p1: s32[]) -> f32[4,128] {
  %p0 = f32[64,4,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,4,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,128}
  ROOT %flat = f32[4,128]{1,0} bitcast(%slice)
}

%outer (q0: f32[64,4,128], q1: s32[]) -> f32[4,128] {
  %q0 = f32[64,4,128]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  ROOT %taken = f32[4,128]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%inner
}

%update (u0: f32[64,4,128], u1: f32[4,128], u2: s32[]) -> f32[64,4,128] {
  %u0 = f32[64,4,128]{2,1,0} parameter(0)
  %u1 = f32[4,128]{1,0} parameter(1)
  %u2 = s32[] parameter(2)
  %none = s32[] constant(0)
  %part = f32[1,4,128]{2,1,0} bitcast(%u1)
  ROOT %whole = f32[64,4,128]{2,1,0} dynamic-update-slice(%u0, %part, %u2, %none, %none)
}

%all-reduce-scatter.1 (r0: f32[8,128]) -> f32[1,128] {
  %r0 = f32[8,128]{1,0} parameter(0)
  ROOT %sum = f32[8,128]{1,0} all-reduce(%r0), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%condition (c: (s32[], f32[64,4,128], f32[4,128])) -> pred[] {
  %c = (s32[], f32[64,4,128]{2,1,0}, f32[4,128]{1,0:S(1)}) parameter(0)
  %count = s32[] get-tuple-element(%c), index=0
  %eight = s32[] constant(8)
  ROOT %below = pred[] compare(%count, %eight), direction=LT
}

%body (b: (s32[], f32[64,4,128], f32[4,128])) -> (s32[], f32[64,4,128], f32[4,128]) {
  %b = (s32[], f32[64,4,128]{2,1,0}, f32[4,128]{1,0:S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %stack = f32[64,4,128]{2,1,0} get-tuple-element(%b), index=1
  %fast = f32[4,128]{1,0:S(1)} get-tuple-element(%b), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %read = f32[4,128]{1,0:S(1)} fusion(%stack, %i), kind=kLoop, calls=%outer, backend_config={"estimated_cycles":"10"}
  %gathered = f32[16,128]{1,0:S(1)} all-gather(%read), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %again = f32[16,128]{1,0:S(1)} all-gather(%read), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %permuted = f32[4,128]{1,0:S(1)} collective-permute(%read), channel_id=2, source_target_pairs={{0,4},{4,0}}
  %written = f32[64,4,128]{2,1,0} fusion(%stack, %permuted, %i), kind=kLoop, calls=%update
  ROOT %end = (s32[], f32[64,4,128]{2,1,0}, f32[4,128]{1,0:S(1)}) tuple(%next, %written, %permuted)
}

ENTRY %main (m0: f32[64,4,128], m1: f32[4,128], m2: f32[8,128]) -> f32[64,4,128] {
  %m0 = f32[64,4,128]{2,1,0} parameter(0)
  %m1 = f32[4,128]{1,0} parameter(1)
  %m2 = f32[8,128]{1,0} parameter(2)
  %start = s32[] constant(0)
  %copied = f32[4,128]{1,0:S(1)} copy(%m1)
  %tuple = (s32[], f32[64,4,128]{2,1,0}, f32[4,128]{1,0:S(1)}) tuple(%start, %m0, %copied)
  %loop = (s32[], f32[64,4,128]{2,1,0}, f32[4,128]{1,0:S(1)}) while(%tuple), condition=%condition, body=%body
  %scattered = f32[1,128]{1,0} fusion(%m2), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %result = f32[64,4,128]{2,1,0} get-tuple-element(%loop), index=1
}
"""
ROW = 4 * 128 * 4  # bytes of one slice of the stack


def test_a_text_with_known_answers():
    found = traffic(TEXT, {"a": 2, "b": 4})
    assert found.collectives == (
        Collective("all-gather", "b", 4, 4 * 3 * ROW),  # one channel is one exchange
        Collective("collective-permute", "a", 4, 4 * ROW),
        Collective("reduce-scatter", "a+b", 1, round(8 * 128 * 4 * 7 / 8)),
    )
    assert found.network_bytes == 16 * ROW + 8 * 128 * 4 * 7 // 8
    # four times a slice read and one written (and the counter); the start copied into fast memory; the scatter
    assert found.memory_bytes == 4 * (2 * ROW + 2 * 4 + 3 * 4) + ROW + 9 * 128 * 4
    assert found.estimated_cycles == 40


def test_attributes_of_a_kernel_go_on_in_further_lines():
    cycles = 'backend_config={"estimated_cycles":"10"}'
    text = TEXT.replace(cycles, 'frontend_attributes={kernel_metadata={\n"block":"{\\"q\\": 512}"\n}}, ' + cycles)
    assert len(text) > len(TEXT)
    assert traffic(text, {"a": 2, "b": 4}) == traffic(TEXT, {"a": 2, "b": 4})


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups=[2,4]<=[8]", "b"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "a"),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "b"),
        ("replica_groups={}", "a+b"),
        ("replica_groups=mesh['x'=8] {'x':(1)2}", "a"),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", "b"),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", "a+b"),
        ("replica_groups=mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'x'}", "b"),
        ("replica_groups=mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'z'}", "a"),
    ],
)
def test_groups_of_devices_are_axes_of_the_mesh(groups, axes):
    text = TEXT.replace("replica_groups=mesh['a'=2,'b'=4] {'b'}", groups)
    assert traffic(text, {"a": 2, "b": 4}).collectives[0].axes == axes


CALLED = """
%called (x: f32[4,128]) -> f32[16,128] {
  %x = f32[4,128]{1,0} parameter(0)
  ROOT %g = f32[16,128]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY"""


def with_line(line):
    """The text with a computation that gathers, and a line in the entry that may run it."""
    return TEXT.replace("\nENTRY", CALLED).replace("  %start = ", f"  {line}\n  %start = ")


@pytest.mark.parametrize(
    "line",
    [
        "%c = f32[16,128] call(%m1), to_apply=%called",
        "%c = f32[16,128] conditional(%start, %m1), branch_computations={%called}",
    ],
)
def test_what_a_call_runs_counts_and_every_branch_of_a_conditional(line):
    before, after = (traffic(text, {"a": 2, "b": 4}).collectives[0] for text in (TEXT, with_line(line)))
    assert (after.times, after.bytes) == (before.times + 1, before.bytes + 3 * ROW)


def test_a_conditional_of_an_unknown_form_is_an_error():
    with pytest.raises(InputError, match="conditional c: expected branch_computations"):
        traffic(with_line("%c = f32[16,128] conditional(%p, %m1), true_computation=%called"), {"a": 2, "b": 4})


def test_groups_of_an_unknown_form_are_an_error():
    text = TEXT.replace("replica_groups=mesh['a'=2,'b'=4] {'b'}", "replica_groups=all")
    with pytest.raises(InputError, match="not of a known form"):
        traffic(text, {"a": 2, "b": 4})


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(InputError, match="condition: expected a count to a constant"):
        traffic(TEXT.replace("direction=LT", "direction=NE"), {"a": 2, "b": 4})


COMPILED = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from nl_jax.costs import traffic

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
put = lambda *axes: NamedSharding(mesh, P(*axes))

def five_times(x, w):
    step = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), put(("data", "fsdp"))), None)
    return jnp.sum(jax.lax.scan(step, x, w)[0])

x, w = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
shardings = (put(("data", "fsdp")), put(None, "fsdp"))
step = jax.jit(five_times, in_shardings=shardings)
print(json.dumps([one._asdict() for one in traffic(step.lower(x, w).compile().as_text(), mesh.shape).collectives]))
"""


def test_a_scan_over_layers_gathers_each_layer_once():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    output = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    found = {(one["kind"], one["axes"]): (one["times"], one["bytes"]) for one in json.loads(output)}
    assert found.pop(("all-gather", "fsdp")) == (5, 5 * 64 * 64 * 4 * 3 // 4)
    assert found == {("all-reduce", "data+fsdp"): (1, 7)}  # of the sum: one number, there and back
