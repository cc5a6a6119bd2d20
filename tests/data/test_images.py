import contextlib
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_cases import write_images
from PIL import Image

from nl_jax import InputError
from nl_jax.data import load_digits, load_image_folder


def test_digits():
    pytest.importorskip("sklearn")
    data = load_digits()
    splits = data.train, data.validation, data.test
    assert [len(split.labels) for split in splits] == [1078, 360, 359]
    images = np.concatenate([split.images for split in splits])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (-1.0, 1.0)
    assert set(np.concatenate([split.labels for split in splits])) == set(range(10))


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn, which is not installed; .*nl-jax\[vision\]"):
        load_digits()


def test_folder(tmp_path):
    write_images(tmp_path)
    (tmp_path / "notes.txt").write_text("no class")
    (tmp_path / ".hidden").mkdir()
    data = load_image_folder(str(tmp_path), 4)
    assert data.classes == ("a", "b")
    assert data.fingerprint["images"] == 20
    splits = data.train, data.validation, data.test
    assert [split.images.shape for split in splits] == [(12, 4, 4, 3), (4, 4, 4, 3), (4, 4, 4, 3)]
    greys = np.concatenate([split.images[:, 0, 0, 0] for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    expected = {(label, 100 * label + number) for label in (0, 1) for number in range(10)}
    assert {(int(label), round((grey + 1) * 127.5)) for label, grey in zip(labels, greys, strict=True)} == expected
    again = load_image_folder(str(tmp_path), 4)
    np.testing.assert_array_equal(again.test.images, data.test.images)
    assert again.fingerprint == data.fingerprint
    Image.new("L", (6, 6), 255).save(tmp_path / "a" / "0.png")
    assert load_image_folder(str(tmp_path), 4).fingerprint["sha256"] != data.fingerprint["sha256"]


def test_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load_image_folder(str(tmp_path / "absent"), 4)
    with pytest.raises(InputError, match="0 images in 0 classes; expected 5 or more"):
        load_image_folder(str(tmp_path), 4)
    write_images(tmp_path, classes=("only",))
    with pytest.raises(InputError, match="10 images in 1 classes"):
        load_image_folder(str(tmp_path), 4)
    with pytest.raises(InputError, match="size=0: expected at least 1"):
        load_image_folder(str(tmp_path), 0)
    (tmp_path / "only" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png: cannot be read as an image"):
        load_image_folder(str(tmp_path), 4)


def chunk(name, content):
    """A part of a PNG with its length and checksum."""
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


DAMAGE = {
    "no header": lambda png: png[:20],
    "half a header": lambda png: png[:30],
    "a header of no length": lambda png: png[:8] + bytes(4) + png[12:],
    "half the pixels": lambda png: png[:-30],
    "an unknown name": lambda png: png.replace(b"IDAT", b"\xff\xff\xff\xff"),
    "a checksum": lambda png: png[:29] + b"abcd" + png[33:],
    "half a resolution": lambda png: png[:33] + chunk(b"pHYs", b"123") + png[33:],
    "half a gamma": lambda png: png[:33] + chunk(b"gAMA", b"12") + png[33:],
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_image_is_named_in_one_line(change, tmp_path):
    write_images(tmp_path)
    file = tmp_path / "a" / "3.png"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match="cannot be read as an image") as caught:
        load_image_folder(str(tmp_path), 4)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(8, 90), noise=st.binary(min_size=1, max_size=6))
def test_any_damage_leaves_an_image_or_an_error_of_input(tmp_path, start, noise):
    if not (tmp_path / "a").exists():
        write_images(tmp_path)
    whole = (tmp_path / "b" / "3.png").read_bytes()
    (tmp_path / "a" / "3.png").write_bytes(whole[:start] + noise + whole[start + len(noise) :])
    with contextlib.suppress(InputError):
        load_image_folder(str(tmp_path), 4)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_greys_of_16_bits_keep_their_brightness(order, tmp_path):
    write_images(tmp_path, classes=("a", "b"))
    greys = np.full((6, 6), 0x4040, order)
    Image.fromarray(greys).save(tmp_path / "b" / "0.png", format="PNG" if order == "<u2" else "TIFF")
    data = load_image_folder(str(tmp_path), 4)
    images = np.concatenate([split.images for split in (data.train, data.validation, data.test)])
    levels = np.round((images[:, 0, 0, 0] + 1) * 127.5).astype(int)
    assert sorted(levels) == sorted([0x40, *range(10), *range(101, 110)])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_greys_whose_white_is_not_known_are_refused(mode, tmp_path):
    write_images(tmp_path)
    Image.new(mode, (6, 6), 7).save(tmp_path / "a" / "3.png", format="TIFF")
    with pytest.raises(InputError, match=rf"3\.png: greys of 32 bits \(mode {mode}\)"):
        load_image_folder(str(tmp_path), 4)
