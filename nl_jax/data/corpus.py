"""The fixed split of documents into training, validation and test, and the fingerprint of the data."""

import dataclasses
import hashlib
from collections.abc import Sequence

from nl_jax.data.reading import Document
from nl_jax.errors import InputError

_HELD_OUT = 0.05  # smallest share of the bytes in validation, and in test


@dataclasses.dataclass(frozen=True)
class Splits:
    """The documents of the three splits; no text is in two of them.

    Examples:
        >>> from nl_jax.data import Document, split_documents
        >>> splits = split_documents([Document("all", b"line\\n" * 1_000)])  # one document is cut at ends of lines
        >>> [sum(len(d.text) for d in part) for part in (splits.train, splits.validation, splits.test)]
        [4500, 250, 250]
    """

    train: list[Document]
    validation: list[Document]
    test: list[Document]


def split_documents(documents: Sequence[Document]) -> Splits:
    """Splits whole documents: validation and test each get at least 5 % of the bytes, and training gets the rest.

    Documents are assigned in the order of their SHA-256, which is a fixed shuffle that depends on their text alone. So
    the split is the same for every seed, machine and reading order, and identical documents are in the same split.
    Within a split the order is that of ``documents``.

    If there are fewer than 3 distinct documents, or whole documents would leave less than half of the bytes to
    training, the concatenated distinct documents are cut instead: the first 90 % of the bytes for training, 5 % for
    validation and 5 % for test. Each cut is moved back (by 2 % at most) to the end of a line if there is one, else to a
    character boundary. Copies of a document are then dropped, so that none is in two splits.

    Raises:
        InputError: if there is too little text for three splits.

    Examples:
        >>> from nl_jax.data import Document, split_documents
        >>> documents = [Document(f"{i}.txt", str(i).encode() * 50) for i in range(100, 140)]
        >>> splits = split_documents(documents)
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (36, 2, 2)
    """
    copies: dict[bytes, list[int]] = {}
    for index, document in enumerate(documents):
        copies.setdefault(hashlib.sha256(document.text).digest(), []).append(index)
    total = sum(len(document.text) for document in documents)

    parts: list[list[int]] = [[], [], []]  # validation, test, train
    part, filled = 0, 0
    for digest in sorted(copies):
        if part < 2 and filled >= _HELD_OUT * total:
            part, filled = part + 1, 0
        parts[part] += copies[digest]
        filled += sum(len(documents[index].text) for index in copies[digest])
    validation, test, train = ([documents[index] for index in sorted(part)] for part in parts)
    if sum(len(document.text) for document in train) < total / 2:  # always true with fewer than 3 distinct documents
        return _cut([documents[indices[0]] for indices in copies.values()])
    return Splits(train, validation, test)


def fingerprint(documents: Sequence[Document]) -> dict[str, int | str]:
    """Identifies the data of a run: the numbers of ``documents`` and ``bytes``, and ``sha256`` of the ordered texts.

    Examples:
        >>> from nl_jax.data import Document, fingerprint
        >>> whole, cut = [Document("a", b"one two")], [Document("a", b"one "), Document("b", b"two")]
        >>> fingerprint(whole)["bytes"], fingerprint(whole)["sha256"] == fingerprint(cut)["sha256"]
        (7, False)
    """
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.text).to_bytes(8, "little"))  # so that moving a boundary changes the digest
        digest.update(document.text)
    num_bytes = sum(len(document.text) for document in documents)
    return {"documents": len(documents), "bytes": num_bytes, "sha256": digest.hexdigest()}


def _cut(documents: Sequence[Document]) -> Splits:
    """Splits the concatenated documents 90/5/5; a document with a cut inside gives a piece to each side."""
    joined = b"".join(document.text for document in documents)
    first = _boundary(joined, round((1 - 2 * _HELD_OUT) * len(joined)))
    second = _boundary(joined, round((1 - _HELD_OUT) * len(joined)))
    splits = []
    for low, high in ((0, first), (first, second), (second, len(joined))):
        if low == high:
            raise InputError(
                f"{len(joined)} bytes of text: expected enough for training, validation and test, such as 1,000"
            )
        pieces, start = [], 0
        for document in documents:
            if piece := document.text[max(low - start, 0) : max(high - start, 0)]:
                pieces.append(Document(document.name, piece))
            start += len(document.text)
        splits.append(pieces)
    return Splits(*splits)


def _boundary(text: bytes, position: int) -> int:
    """The last line end in the 2 % of the text before ``position``; else the last character boundary before it."""
    newline = text.rfind(b"\n", position - len(text) // 50, position)
    if newline >= 0:
        return newline + 1
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        position -= 1
    return position
