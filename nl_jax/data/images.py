"""Labelled images: scikit-learn's handwritten digits, or the user's own folders, and their fixed split."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from nl_jax.errors import InputError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


class ImageSet(NamedTuple):
    """One split: images with values in [-1, 1], and the class of each image.

    Examples:
        >>> from nl_jax.data import load_digits
        >>> images, labels = load_digits().test
        >>> images.shape[1:], float(images.min()), float(images.max())
        ((8, 8, 1), -1.0, 1.0)
    """

    images: Float[np.ndarray, "N height width channels"]
    labels: Int[np.ndarray, "N"]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """The images of a run.

    Attributes:
        train, validation, test: 60, 20 and 20 % of the images, after a shuffle that depends on their number alone.
        classes: class names, indexed by label.
        fingerprint: the number of ``images``, and the ``sha256`` of images and labels, for ``results.json``.

    Examples:
        >>> from nl_jax.data import load_digits
        >>> data = load_digits()
        >>> [len(part.labels) for part in (data.train, data.validation, data.test)], data.fingerprint["images"]
        ([1078, 360, 359], 1797)
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    fingerprint: dict[str, int | str]


def load_digits() -> ImageData:
    """Loads the 1,797 digits of scikit-learn, 8 x 8 pixels each, without a download.

    They are UCI's Optical Recognition of Handwritten Digits.

    Raises:
        InputError: if scikit-learn is not installed.

    Examples:
        >>> from nl_jax.data import load_digits
        >>> data = load_digits()
        >>> data.train.images.shape, len(data.classes)
        ((1078, 8, 8, 1), 10)
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed; expected: pip install 'nl-jax[vision]'"
        ) from error
    digits = load()
    images = np.asarray(digits.images, np.float32)[..., None] / 8.0 - 1.0  # pixels are 0 to 16
    return _split(images, np.asarray(digits.target, np.int32), tuple(map(str, range(10))))


def load_image_folder(path: str, size: int) -> ImageData:
    """Loads the images of a directory with one sub-directory for each class, as RGB, resized to squares.

    Args:
        path: the directory. Hidden sub-directories, and files without the suffix of an image format, are skipped.
        size: pixels on each side after resizing.

    Raises:
        InputError: if there is no such directory, fewer than two classes have images, there are fewer than five images,
            an image cannot be read, or the size is below 1.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from nl_jax.data import load_image_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         (Path(folder) / name).mkdir()
        ...         for number in range(3):
        ...             Image.new("RGB", (8, 8)).save(Path(folder) / name / f"{number}.png")
        ...     data = load_image_folder(folder, size=4)
        >>> data.classes, data.train.images.shape
        (('a', 'b'), (4, 4, 4, 3))
    """
    if size < 1:
        raise InputError(f"size={size}: expected at least 1")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"image path {path!r}: no such directory; expected one with a sub-directory for each class")
    files = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    classes = tuple(name for name, found in files.items() if found)
    images = [_read(file, size) for name in classes for file in files[name]]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files[name]) for name in classes])
    if len(classes) < 2 or len(images) < 5:
        raise InputError(
            f"image path {path!r}: {len(images)} images in {len(classes)} classes; expected 5 or more images in two or "
            "more sub-directories, one for each class"
        )
    return _split(np.stack(images), labels, classes)


def _read(file: Path, size: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            image.load()
            whole = _eight_bits(image, file)
            small = whole.convert("RGB").resize((size, size))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of a damaged file: Pillow has no common class
        raise InputError(f"{file}: cannot be read as an image ({error})") from error
    return np.asarray(small, np.float32) / 127.5 - 1.0


def _eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """The image with 8 bits for each value, since conversion to RGB would clip wider greys to white."""
    # Pillow before 11 reads a PNG of 16 bits as mode I
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        greys = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((greys + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"{file}: greys of 32 bits (mode {image.mode}), whose white is not known; expected 8 or 16")
    return image


def _split(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> ImageData:
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [round(0.6 * len(order)), round(0.8 * len(order))])
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes() + labels.tobytes()).hexdigest()
    train, validation, test = (ImageSet(images[part], labels[part]) for part in parts)
    return ImageData(train, validation, test, classes, {"images": len(images), "sha256": digest})
