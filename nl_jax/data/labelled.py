"""Labelled texts for class-incremental learning: CLINC150, Banking77 and DBpedia, read from the user's own folder.

The files are the published ones: ``clinc150/data_full.json`` (rows of text and intent; the out-of-scope rows are left
out) with ``clinc150/domains.json``, ``banking77/train.csv`` and ``test.csv`` with the columns ``text,category``, and
``dbpedia/train.csv`` and ``test.csv`` with the columns ``text,label``.
"""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from nl_jax.data.examples import check_characters
from nl_jax.errors import InputError
from nl_jax.files import decoded, local_path

VALIDATION_SHARE = 0.2  # share of the training texts of each class on which settings are chosen
Row = tuple[str, str]  # text and label


class LabelledTexts(NamedTuple):
    """Texts, and the class of each as an index into ``LabelledData.classes``.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import LabelledTexts
        >>> texts = LabelledTexts(("hi", "bye", "hello"), np.array([0, 1, 0]))
        >>> texts.take(np.array([2, 0])).texts
        ('hello', 'hi')
    """

    texts: tuple[str, ...]
    labels: Int[np.ndarray, "N"]

    def take(self, rows: Int[np.ndarray, "n"]) -> "LabelledTexts":
        """The texts at these rows, in their order."""
        return LabelledTexts(tuple(self.texts[row] for row in rows), self.labels[rows])


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """A data set of labelled texts.

    Attributes:
        name: of the data set.
        classes: names of the classes, sorted; labels are indices into it.
        train, test: the published splits.
        domains: the classes of each domain, by the domain's name; empty where there are no domains.
        fingerprint: numbers of ``classes``, ``train`` and ``test`` texts, and the ``sha256`` of all texts and labels.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.data import LabelledData, LabelledTexts
        >>> train = LabelledTexts(tuple("abcdefghij"), np.repeat([0, 1], 5))
        >>> data = LabelledData("letters", ("early", "late"), train, train, {}, {})
        >>> fit, validation = data.validation_rows()
        >>> len(fit), train.labels[validation].tolist()  # a fifth of each class
        (8, [0, 1])
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledTexts
    test: LabelledTexts
    domains: Mapping[str, tuple[int, ...]]
    fingerprint: dict[str, int | str]

    def validation_rows(self) -> tuple[Int[np.ndarray, "fit"], Int[np.ndarray, "validation"]]:
        """Rows of ``train`` to learn from while settings are chosen, and those to choose them on.

        A fifth of each class, drawn by a fixed seed, is for validation; a class of fewer than 5 texts has none there.
        """
        random = np.random.default_rng(0)
        held_out = np.zeros(len(self.train.labels), bool)
        for label in range(len(self.classes)):
            rows = np.flatnonzero(self.train.labels == label)
            held_out[random.permutation(rows)[: int(VALIDATION_SHARE * len(rows))]] = True
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_labelled(name: str, data_dir: str) -> LabelledData:
    """Loads a data set by its name, one of `LABELLED_DATA`.

    Args:
        name: of the data set.
        data_dir: the folder with the sub-folders ``clinc150``, ``banking77`` and ``dbpedia``.

    Raises:
        InputError: for a file that is missing or not of the format, other columns, a label of the test split that
            never occurs in training, or a class without domain. The message names the file, and the column or label.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from nl_jax.data import load_labelled
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "banking77").mkdir()
        ...     for split in ("train", "test"):
        ...         file = Path(folder) / "banking77" / f"{split}.csv"
        ...         _ = file.write_text("text,category\\nWhere is my card?,arrival\\nIt is lost.,loss\\n")
        ...     data = load_labelled("banking77", folder)
        >>> data.classes, data.train.labels.tolist()
        (('arrival', 'loss'), [0, 1])
    """
    if name not in LABELLED_DATA:
        raise InputError(f"data set {name!r}: expected one of {', '.join(LABELLED_DATA)}")
    folder = local_path(data_dir) / name
    return LABELLED_DATA[name](folder)


def _clinc150(folder: Path) -> LabelledData:
    file = folder / "data_full.json"
    content = _json(file)
    rows = {}
    for key in ("train", "test"):
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{file}: no key {key!r}; expected CLINC150's rows of [text, intent] under train and test")
        if not (isinstance(content[key], list) and all(map(_is_row, content[key]))):
            raise InputError(f"{file}: key {key!r}: expected rows of [text, intent]")
        for row in content[key]:
            check_characters("\n".join(row), f"{file}: key {key!r}: row {row!r}")
        rows[key] = [(text, label) for text, label in content[key]]
    data = _labelled("clinc150", file, file, rows["train"], rows["test"])
    domains = _json(folder / "domains.json")
    return dataclasses.replace(data, domains=_domains(folder / "domains.json", domains, data.classes))


def _domains(file: Path, domains: Any, classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The classes of each domain, each class in one of them."""
    if not (isinstance(domains, dict) and all(isinstance(names, list) for names in domains.values())):
        raise InputError(f"{file}: expected an object with a list of intents for each domain")
    named = [name for names in domains.values() for name in names]
    for name in (*named, *classes):
        if name not in classes or named.count(name) != 1:
            raise InputError(f"{file}: label {name!r}: expected each label of the training split in one domain")
    return {domain: tuple(classes.index(name) for name in names) for domain, names in domains.items()}


def _from_csv(name: str, column: str) -> Callable[[Path], LabelledData]:
    """The loader of a data set in ``train.csv`` and ``test.csv`` with the columns ``text`` and ``column``."""

    def load(folder: Path) -> LabelledData:
        train, test = folder / "train.csv", folder / "test.csv"
        return _labelled(name, train, test, _csv(train, column), _csv(test, column))

    return load


LABELLED_DATA: dict[str, Callable[[Path], LabelledData]] = {
    "clinc150": _clinc150,
    "banking77": _from_csv("banking77", "category"),
    "dbpedia": _from_csv("dbpedia", "label"),
}
"""How each data set of labelled texts is read from the folder that holds its files."""


def _labelled(name: str, file: Path, test_file: Path, train: Sequence[Row], test: Sequence[Row]) -> LabelledData:
    classes = tuple(sorted({label for _, label in train}))
    if len(classes) == 1:
        raise InputError(f"{file}: one label, {classes[0]!r}; expected at least two")
    index = {label: number for number, label in enumerate(classes)}
    for path, rows in ((file, train), (test_file, test)):
        if not rows:
            raise InputError(f"{path}: no rows; expected labelled texts")
        for _, label in rows:
            if label not in index:
                raise InputError(f"{path}: label {label!r} is never seen in training ({file})")
    digest = hashlib.sha256(json.dumps([train, test]).encode())
    splits = [
        LabelledTexts(tuple(t for t, _ in r), np.array([index[c] for _, c in r], np.int32)) for r in (train, test)
    ]
    sizes = {"classes": len(classes), "train": len(train), "test": len(test)}
    return LabelledData(name, classes, splits[0], splits[1], {}, {**sizes, "sha256": digest.hexdigest()})


def _is_row(value: Any) -> bool:
    """Whether a value from JSON is a list of two texts."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _text(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected the directory of the data to hold it")
    return decoded(file.read_bytes(), str(file)).removeprefix("\ufeff")  # the byte-order mark that some editors write


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError) as error:  # ValueError also for a number of too many digits
        raise InputError(f"{file}: not JSON ({error}); expected a whole file") from error


def _csv(file: Path, column: str) -> list[Row]:
    lines = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    expected = ["text", column]
    rows = []
    try:
        header = next(lines, [])
        if header != expected:
            raise InputError(f"{file}: columns {','.join(header) or 'missing'}; expected {','.join(expected)}")
        for row in lines:
            if not row:  # a blank line
                continue
            if len(row) != 2:
                raise InputError(f"{file}:{lines.line_num}: {len(row)} columns; expected {','.join(expected)}")
            rows.append((row[0], row[1]))
    except csv.Error as error:
        raise InputError(f"{file}:{lines.line_num}: not CSV ({error})") from error
    return rows
