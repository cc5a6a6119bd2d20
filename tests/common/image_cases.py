"""Folders of images, for tests."""

from PIL import Image


def write_images(root, *, classes=("a", "b"), each=10, size=6):
    """Grey squares, brighter from class to class and from image to image."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.new("L", (size, size), 100 * label + number).save(root / name / f"{number}.png")
    return root
