"""A tokenizer with a closed vocabulary of words, digits and marks, small enough for models trained from scratch."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, Int32

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_IN_UUID = re.compile(r"[0-9a-f]{2}|-")
_PIECE = re.compile(rf"{_UUID}|[^\W\d_]+|[0-9]{{1,2}}|\n|[^\s]")
_SEPARATOR, UNKNOWN = "<end>", "<unk>"
_HEXADECIMAL = "0123456789abcdef"
_CODES = [*_HEXADECIMAL, *(a + b for a in _HEXADECIMAL for b in _HEXADECIMAL)]
_MARKS = ("\n", "-", ",", ".", "?", "!", ":", ";", "'", '"', "(", ")")


class WordTokenizer:
    """Every known word is a token, in lower case; so are marks, line ends and pairs of digits.

    A number is read in pairs of digits from its left, and a UUID in pairs of hexadecimal digits. A word that is not in
    the vocabulary is the token `UNKNOWN`. The class has the methods of ``nl_jax.data.Tokenizer``. Decoding does not
    restore a text exactly: all words are in lower case, with one space between two of them, which is enough to find an
    answer in a text.

    Args:
        words: words of the vocabulary, of letters only; their case does not count.

    Examples:
        >>> from nl_jax.tasks import WordTokenizer
        >>> tokenizer = WordTokenizer(["hello", "world"])
        >>> ids, lengths = tokenizer.encode(b"Hello, world 1234")
        >>> tokenizer.decode(ids), lengths.tolist()
        ('hello, world 1234', [5, 1, 6, 3, 2])
    """

    digest = "words"

    def __init__(self, words: Iterable[str]):
        lower = {word.lower() for word in words} - set(_CODES)
        spellings = [_SEPARATOR, UNKNOWN, *_MARKS, *_CODES, *sorted(lower)]
        self._spellings = spellings
        self._ids = {spelling: index for index, spelling in enumerate(spellings)}
        self.vocab_size = len(spellings)
        self.separator_id = 0
        self.unknown_id = 1

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Returns the ids of UTF-8 text and the number of bytes that each covers, white space with the token after it.

        White space at the end counts for the last token.
        """
        characters, ids, ends = text.decode("utf-8"), [], []
        for match in _PIECE.finditer(characters):
            piece = match[0]
            pieces = _IN_UUID.findall(piece) if _is_uuid(piece) else [piece]
            ids += [self._ids.get(part.lower(), self.unknown_id) for part in pieces]
            begin = match.start()
            for part in pieces:
                begin += len(part)
                ends.append(begin)
        if not ids:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        is_start = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
        byte_of_character = np.append(np.flatnonzero(is_start), len(text))
        positions = byte_of_character[ends]
        positions[-1] = len(text)
        return np.asarray(ids, np.int32), np.diff(positions, prepend=0).astype(np.int32)

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Returns the text of token ids, without separators and ids out of range."""
        text, before = "", ""
        for index in np.asarray(ids).tolist():
            if not 0 < index < self.vocab_size:
                continue
            spelling = self._spellings[index]
            joined = _is_code(before) and _is_code(spelling)
            if text and not joined and "-" not in (before, spelling) and spelling not in (*_MARKS[2:7], "\n"):
                text += " "
            text, before = text + spelling, spelling
        return text


def common_words(text: str, count: int) -> list[str]:
    """The most frequent words of a text in lower case, at most ``count``; of equally frequent ones the first."""
    found = Counter(word.lower() for word in re.findall(r"[^\W\d_]+", text))
    return [word for word, _ in found.most_common(count)]


def _is_code(spelling: str) -> bool:
    """Whether a token is a part of a number or of a UUID."""
    return len(spelling) <= 2 and all(character in _HEXADECIMAL for character in spelling) and spelling != ""


def _is_uuid(piece: str) -> bool:
    return len(piece) == 36 and piece[8] == "-"
