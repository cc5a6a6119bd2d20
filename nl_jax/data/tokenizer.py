"""Text to token ids and back: bytes as they are, or a Hugging Face ``tokenizer.json``."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from jaxtyping import Int, Int32

from nl_jax.errors import InputError

# What published vocabularies call the end of a document; the first that a vocabulary has is its separator.
_SEPARATORS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[SEP]")
_SHOWN = 40  # characters of a text in a message


class Tokenizer(Protocol):
    """What the data pipeline asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the separator's included: ids are in ``[0, vocab_size)``."""

    @property
    def separator_id(self) -> int:
        """The id between two documents; ``encode`` does not put it there."""

    @property
    def digest(self) -> str:
        """What identifies the tokenizer of a run: the SHA-256 of its file, in hexadecimal; ``bytes`` for bytes."""

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Token ids of UTF-8 text, without special tokens, and how many of its bytes each one covers.

        The counts sum to ``len(text)`` (unless the tokenizer finds no token at all in it, as some do in white space).
        A character that takes several tokens counts for the first of them; text that the tokenizer skips, such as white
        space, for the token after it.
        """

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Text of token ids; separators and ids outside the vocabulary are left out, broken UTF-8 becomes U+FFFD."""


class ByteTokenizer:
    """Every byte is a token: 256 ids, and 256 is the separator."""

    vocab_size = 257
    separator_id = 256
    digest = "bytes"

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """The bytes of any ``text`` as ids, each covering one byte."""
        ids = np.frombuffer(text, np.uint8).astype(np.int32)
        return ids, np.ones_like(ids)

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Text of the bytes; other ids are left out, broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        return ids[(ids >= 0) & (ids < self.separator_id)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` as the ``tokenizers`` package reads it.

    The separator is the first of ``</s>``, ``<|endoftext|>``, ``<|end_of_text|>``, ``<eos>``, ``<|eos|>`` and ``[SEP]``
    that the vocabulary has, else a new id at its end. Special tokens spelled out in the text are text.

    Args:
        path: the file, or a directory that holds it as ``tokenizer.json``.

    Raises:
        InputError: no such file, or not a tokenizer.
    """

    def __init__(self, path: str):
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise InputError(f"tokenizer {path!r}: no such file; expected a Hugging Face tokenizer.json")
        try:
            content = file.read_bytes()  # once, so that the digest is of what is used
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises plain Exception
            raise InputError(f"tokenizer {path!r}: expected a Hugging Face tokenizer.json, but {error}") from error
        self.digest = hashlib.sha256(content).hexdigest()
        self._name = f"tokenizer {path!r}"
        # Files are saved with what they were trained with; a corpus needs every token and no padding.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1  # ids may have gaps, so not the number of entries
        self.separator_id = next((vocabulary[name] for name in _SEPARATORS if name in vocabulary), size)
        self.vocab_size = max(size, self.separator_id + 1)

    def __str__(self) -> str:
        return self._name

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Ids of UTF-8 ``text`` and the bytes each covers, as in :class:`Tokenizer`.

        Raises:
            InputError: not UTF-8, or text that the tokenizer does not know, where it has no token for the unknown.
        """
        try:
            characters = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"text to tokenize: not UTF-8 at byte {error.start}; expected UTF-8 text") from error
        try:
            encoding = self._tokenizer.encode(characters, add_special_tokens=False)
        except Exception as error:  # the package raises plain Exception
            unknown = next((word for word in characters.split() if not self._knows(word)), characters)[:_SHOWN]
            raise InputError(
                f"{self}: cannot encode {unknown!r} ({error}); expected one that knows every "
                "character, as byte-level ones do"
            ) from error
        ids = np.array(encoding.ids, np.int32)
        if not len(ids):
            return ids, np.zeros_like(ids)
        # Offsets count characters: where each character starts in bytes turns them into byte positions.
        is_start = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
        byte_of_character = np.append(np.flatnonzero(is_start), len(text))
        ends = byte_of_character[np.maximum.accumulate(np.array(encoding.offsets)[:, 1])]
        ends[-1] = len(text)
        return ids, np.diff(ends, prepend=0).astype(np.int32)

    def _knows(self, word: str) -> bool:
        try:
            self._tokenizer.encode(word, add_special_tokens=False)
        except Exception:  # the package raises plain Exception
            return False
        return True

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Text of token ids; separators and ids outside the vocabulary are left out, broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        known = ids[(ids >= 0) & (ids < self.vocab_size) & (ids != self.separator_id)]
        return self._tokenizer.decode(known.tolist(), skip_special_tokens=False)


def load_tokenizer(path: str | None = None) -> Tokenizer:
    """The tokenizer of the ``tokenizer.json`` at ``path``; bytes for ``None``. ``InputError`` as the class raises."""
    return ByteTokenizer() if path is None else HuggingFaceTokenizer(path)


def whole_characters(text: bytes) -> int:
    """How many bytes of a text's beginning are whole characters: all but a UTF-8 character that the end cuts."""
    for back in range(1, min(len(text), 3) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character, which says how many there are
            return len(text) - back if byte >= 0xC0 and back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(text)
    return len(text)


def continuation(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ``ids`` add to that of ``context``, the ids before them.

    How a token is spelled depends on those before it: many tokenizers write the space between two words only where
    there is a word before, so ``ids`` decoded alone would lose it. A character that begins in the context and ends in
    ``ids`` counts as theirs.
    """
    before = tokenizer.decode(np.asarray(context, int))
    text = tokenizer.decode(np.asarray([*context, *ids], int))
    return text[len(os.path.commonprefix([before, text])) :]  # noqa: RUF071 (characters are what is meant)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int], context: Sequence[int] = ()) -> Iterator[str]:
    """Yields the text of ids as they come, held back while a character is not complete.

    Args:
        tokenizer: that of the ids.
        ids: may be without end.
        context: the ids before them. Joined, what is yielded is ``continuation(tokenizer, context, ids)``.
    """
    read = list(context)
    start, end = 0, len(read)  # read[:end] is yielded, and read[start:end] the context of what is not
    for token in ids:
        read.append(token)
        text = continuation(tokenizer, read[start:end], read[end:])
        # Tokens without a text of their own are no context to go on from.
        if text and not text.endswith("\ufffd"):
            yield text
            start, end = end, len(read)
    yield continuation(tokenizer, read[start:end], read[end:])
