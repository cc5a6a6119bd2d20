"""Small labelled data sets in the formats of CLINC150, Banking77 and DBpedia, whose texts tell their class."""

import csv
import json

import numpy as np

CLASSES = 6


def rows(seed, per_class, classes=CLASSES):
    """Rows of text and label: words of the class among words that all classes have."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(per_class * classes):
        label = number % classes
        own = [f"{'abcdefgh'[label]}word{random.integers(3)}" for _ in range(2)]
        words = [*own, *(f"common{random.integers(9)}" for _ in range(3))]
        found.append([" ".join(random.permutation(words)), f"class_{label}"])
    return found


def write_labelled(directory, per_class=20):
    """The three data sets in a folder, as ``--data_dir`` takes it."""
    train, test = rows(0, per_class), rows(1, 5)
    clinc = directory / "clinc150"
    clinc.mkdir(parents=True)
    (clinc / "data_full.json").write_text(json.dumps({"train": train, "val": test, "test": test, "oos_test": []}))
    domains = {"first": [f"class_{i}" for i in range(3)], "second": [f"class_{i}" for i in range(3, CLASSES)]}
    (clinc / "domains.json").write_text(json.dumps(domains))
    for name, column in (("banking77", "category"), ("dbpedia", "label")):
        (directory / name).mkdir()
        for split, content in (("train", train), ("test", test)):
            with (directory / name / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["text", column], *content])
    return directory
