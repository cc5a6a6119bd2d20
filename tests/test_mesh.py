"""Meshes from text."""

import jax
import pytest

from nl_jax import InputError
from nl_jax.training import parse_mesh


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
