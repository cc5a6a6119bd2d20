"""The fixed split of documents into training, validation and test, and what identifies them."""

import dataclasses
import hashlib
from collections.abc import Sequence

from nl_jax.data.reading import Document
from nl_jax.errors import InputError

_HELD_OUT = 0.05  # the least share of the bytes in validation, and in test


@dataclasses.dataclass(frozen=True)
class Splits:
    """Documents by their use; no text is in two of them."""

    train: list[Document]
    validation: list[Document]
    test: list[Document]


def split_documents(documents: Sequence[Document]) -> Splits:
    """Splits documents whole: validation and test each get at least 5 % of the bytes, training the rest.

    Documents are dealt in the order of their SHA-256, a fixed shuffle that depends on nothing but their text: the split
    is the same for every seed, machine and order of reading, and identical documents land in the same split. Within a
    split the order is that of ``documents``.

    With fewer than 3 distinct documents, or where whole documents would leave less than half of the bytes to training,
    the distinct documents are cut instead: the first 90 % of their concatenated bytes for training, 5 % for validation,
    5 % for test, each cut moved back (by 2 % at most) to the end of a line where there is one, else to a character
    boundary. Copies of a document are then dropped, so that none is in two splits.

    Raises:
        InputError: too little text for three splits.
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
    if sum(len(document.text) for document in train) < total / 2:  # always so with fewer than 3 distinct documents
        return _cut([documents[indices[0]] for indices in copies.values()])
    return Splits(train, validation, test)


def fingerprint(documents: Sequence[Document]) -> dict[str, int | str]:
    """What identifies the data of a run: ``documents`` (how many), ``bytes`` and ``sha256`` of the texts in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.text).to_bytes(8, "little"))  # so that moving a boundary changes the digest
        digest.update(document.text)
    num_bytes = sum(len(document.text) for document in documents)
    return {"documents": len(documents), "bytes": num_bytes, "sha256": digest.hexdigest()}


def _cut(documents: Sequence[Document]) -> Splits:
    """Splits the concatenation of the documents 90/5/5; a document with a cut inside gives a piece to both sides."""
    joined = b"".join(document.text for document in documents)
    first = _boundary(joined, round((1 - 2 * _HELD_OUT) * len(joined)))
    second = _boundary(joined, round((1 - _HELD_OUT) * len(joined)))
    splits = []
    for low, high in ((0, first), (first, second), (second, len(joined))):
        if low == high:
            raise InputError(f"{len(joined)} bytes of text are too few for training, validation and test")
        pieces, start = [], 0
        for document in documents:
            if piece := document.text[max(low - start, 0) : max(high - start, 0)]:
                pieces.append(Document(document.name, piece))
            start += len(document.text)
        splits.append(pieces)
    return Splits(*splits)


def _boundary(text: bytes, position: int) -> int:
    """The last line end within 2 % of the text before ``position``, else the last character boundary there."""
    newline = text.rfind(b"\n", position - len(text) // 50, position)
    if newline >= 0:
        return newline + 1
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        position -= 1
    return position
