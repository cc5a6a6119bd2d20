import sys

import numpy as np
import pytest
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
