"""Converts text to token ids and back: every byte a token, or by a Hugging Face ``tokenizer.json``."""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from jaxtyping import Int, Int32

from nl_jax.errors import InputError

# Names of the end of a document in published vocabularies; the first that a vocabulary has is its separator.
_SEPARATORS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[SEP]")
_SHOWN = 40  # number of characters of a text that a message shows


class Tokenizer(Protocol):
    """The interface of a tokenizer, as the data pipeline uses it.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, Tokenizer
        >>> tokenizer: Tokenizer = ByteTokenizer()
        >>> tokenizer.vocab_size, tokenizer.separator_id, tokenizer.digest
        (257, 256, 'bytes')
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids, including that of the separator: ids are in ``[0, vocab_size)``."""

    @property
    def separator_id(self) -> int:
        """The id of the separator between documents; ``encode`` does not insert it."""

    @property
    def digest(self) -> str:
        """Identifies the tokenizer of a run: the SHA-256 of its file in hexadecimal, or ``bytes`` for bytes."""

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Returns the token ids of UTF-8 text, without special tokens, and the number of bytes that each id covers.

        The counts sum to ``len(text)`` (unless the tokenizer finds no token at all, as some do in white space). The
        bytes of a character with several tokens count for the first of them. The bytes of text that the tokenizer
        skips, such as white space, count for the token after it.
        """

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Returns the text of token ids. Separators and unknown ids are left out; broken UTF-8 becomes U+FFFD."""


class ByteTokenizer:
    """Every byte is a token: ids 0 to 255 are bytes, and 256 is the separator.

    Examples:
        >>> from nl_jax.data import ByteTokenizer
        >>> ids, lengths = ByteTokenizer().encode("né".encode())
        >>> ids.tolist(), ByteTokenizer().decode(ids)
        ([110, 195, 169], 'né')
    """

    vocab_size = 257
    separator_id = 256
    digest = "bytes"

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Returns the bytes of ``text`` as ids, each of which covers one byte."""
        ids = np.frombuffer(text, np.uint8).astype(np.int32)
        return ids, np.ones_like(ids)

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Returns the text of the bytes. Other ids are left out; broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        return ids[(ids >= 0) & (ids < self.separator_id)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class HuggingFaceTokenizer:
    """A tokenizer from a ``tokenizer.json``, by the ``tokenizers`` package.

    The separator is the first of ``</s>``, ``<|endoftext|>``, ``<|end_of_text|>``, ``<eos>``, ``<|eos|>`` and ``[SEP]``
    that the vocabulary has, else a new id at its end. If the text spells out a special token, it is treated as text.

    Args:
        path: the file, or a directory with a file ``tokenizer.json``.

    Raises:
        InputError: if there is no such file, or it is not a tokenizer.

    Attributes:
        content: what the file holds.
        begin_tokens: ids that a model expects before every text, as `load_pretrained` finds them; none otherwise.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from nl_jax.data import HuggingFaceTokenizer
        >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = HuggingFaceTokenizer.from_json(words.to_str().encode(), "words")
        >>> tokenizer.encode(b"b a b")[0].tolist(), tokenizer.separator_id  # a new id, since there is no <eos>
        ([1, 0, 1], 3)
    """

    begin_tokens: tuple[int, ...] = ()

    def __init__(self, path: str):
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise InputError(f"tokenizer {path!r}: no such file; expected a Hugging Face tokenizer.json")
        try:
            content = file.read_bytes()  # read once, so that the digest is that of the content in use
        except OSError as error:
            raise InputError(f"tokenizer {path!r}: cannot be read ({error.strerror})") from error
        self._set_up(content, f"tokenizer {path!r}")

    @classmethod
    def from_json(cls, content: bytes, name: str) -> "HuggingFaceTokenizer":
        """The tokenizer whose ``tokenizer.json`` would have this content; messages call it ``name``.

        Raises:
            InputError: if it is not a tokenizer.
        """
        self = cls.__new__(cls)
        self._set_up(content, name)
        return self

    def _set_up(self, content: bytes, name: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package raises plain Exception
            raise InputError(f"{name}: expected a Hugging Face tokenizer.json, but {error}") from error
        self.content = content
        self.digest = hashlib.sha256(content).hexdigest()
        self._name = name
        # The file may ask for truncation and padding; a corpus needs every token and no padding.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1  # not the number of entries, since ids may have gaps
        self.separator_id = next((vocabulary[name] for name in _SEPARATORS if name in vocabulary), size)
        self.vocab_size = max(size, self.separator_id + 1)

    def __str__(self) -> str:
        return self._name

    def encode(self, text: bytes) -> tuple[Int32[np.ndarray, "N"], Int32[np.ndarray, "N"]]:
        """Returns the ids of UTF-8 ``text`` and the number of bytes that each covers, as :class:`Tokenizer` says.

        Raises:
            InputError: if the text is not UTF-8, or is unknown to a tokenizer without a token for unknown text.
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
        # Offsets count characters; the byte at which each character starts turns them into byte positions.
        is_start = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80
        byte_of_character = np.append(np.flatnonzero(is_start), len(text))
        ends = byte_of_character[np.maximum.accumulate(np.array(encoding.offsets)[:, 1])]
        ends[-1] = len(text)
        return ids, np.diff(ends, prepend=0).astype(np.int32)

    def encode_marked(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text in which special tokens that are spelled out count as tokens, as in a chat.

        Args:
            text: any text.
            add_special_tokens: whether tokens are added that the file puts around every text, such as its beginning.
        """
        return self._marked.encode(text, add_special_tokens=add_special_tokens).ids

    @functools.cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which special tokens that are spelled out are tokens."""
        marked = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        marked.encode_special_tokens = False
        return marked

    def token_id(self, token: str) -> int | None:
        """The id of a token that is spelled so, or None."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """The spelling of a token, or None for an unknown id."""
        return self._tokenizer.id_to_token(token_id)

    def _knows(self, word: str) -> bool:
        try:
            self._tokenizer.encode(word, add_special_tokens=False)
        except Exception:  # the package raises plain Exception
            return False
        return True

    def decode(self, ids: Int[np.ndarray, "N"]) -> str:
        """Returns the text of token ids. Separators and unknown ids are left out; broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        known = ids[(ids >= 0) & (ids < self.vocab_size) & (ids != self.separator_id)]
        return self._tokenizer.decode(known.tolist(), skip_special_tokens=False)


def begin_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that a text begins with: those that its model expects before every text, or else the separator.

    Examples:
        >>> from nl_jax.data.tokenizer import ByteTokenizer, begin_ids
        >>> begin_ids(ByteTokenizer())
        (256,)
    """
    return begin_tokens(tokenizer) or (tokenizer.separator_id,)


def begin_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer's model expects before every text; none for most tokenizers.

    Examples:
        >>> from nl_jax.data.tokenizer import ByteTokenizer, begin_tokens
        >>> begin_tokens(ByteTokenizer())
        ()
    """
    return getattr(tokenizer, "begin_tokens", ())


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text or of a part of one, without those that a text begins with.

    Examples:
        >>> from nl_jax.data.tokenizer import ByteTokenizer, ids_of
        >>> ids_of(ByteTokenizer(), "ab")
        [97, 98]
    """
    return tokenizer.encode(text.encode())[0].tolist()


def load_tokenizer(path: str | None = None) -> Tokenizer:
    """Loads the ``tokenizer.json`` at ``path``, with the errors of `HuggingFaceTokenizer`; ``None`` gives bytes.

    Examples:
        >>> from nl_jax.data import load_tokenizer
        >>> load_tokenizer().vocab_size  # bytes and a separator
        257
    """
    return ByteTokenizer() if path is None else HuggingFaceTokenizer(path)


def whole_characters(text: bytes) -> int:
    """Number of bytes of a text that are whole characters: all but those of a UTF-8 character cut off by the end.

    Examples:
        >>> from nl_jax.data import whole_characters
        >>> whole_characters("né".encode()), whole_characters("né".encode()[:2])
        (3, 1)
    """
    for back in range(1, min(len(text), 3) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character says how many there are
            return len(text) - back if byte >= 0xC0 and back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(text)
    return len(text)


def continuation(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ``ids`` add to the text of ``context``, the ids before them.

    The text of a token depends on the tokens before it: many tokenizers write the space between two words only after a
    first word, so ``ids`` decoded alone would lose it. A character that begins in the context and ends in ``ids``
    belongs to the result.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, continuation
        >>> ids = list("né".encode())
        >>> continuation(ByteTokenizer(), ids[:2], ids[2:])  # the letter that the context began
        'é'
    """
    before = tokenizer.decode(np.asarray(context, int))
    text = tokenizer.decode(np.asarray([*context, *ids], int))
    return text[len(os.path.commonprefix([before, text])) :]  # noqa: RUF071 (characters are what is meant)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int], context: Sequence[int] = ()) -> Iterator[str]:
    """Yields the text of ids as they arrive, except that incomplete characters wait until they are complete.

    The yielded texts joined are ``continuation(tokenizer, context, ids)``.

    Args:
        tokenizer: the tokenizer of the ids.
        ids: token ids; may be endless.
        context: the ids before them.

    Examples:
        >>> from nl_jax.data import ByteTokenizer, decode_stream
        >>> list(decode_stream(ByteTokenizer(), "née".encode()))  # the two bytes of é come together
        ['n', 'é', 'e', '']
    """
    read = list(context)
    start, end = 0, len(read)  # read[:end] has been yielded; read[start:end] is the context for the rest
    for token in ids:
        read.append(token)
        text = continuation(tokenizer, read[start:end], read[end:])
        # Tokens without text of their own cannot serve as context.
        if text and not text.endswith("\ufffd"):
            yield text
            start, end = end, len(read)
    yield continuation(tokenizer, read[start:end], read[end:])


def until_stop(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields a text that arrives in pieces up to the first of several stop strings, which is left out.

    A piece waits while it may be the beginning of a stop string.

    Args:
        texts: the pieces; no more are taken once a stop string is complete.
        stops: strings that are not empty; none let everything through.

    Examples:
        >>> from nl_jax.data import until_stop
        >>> "".join(until_stop(["He said: st", "op", " now"], ["stop"]))
        'He said: '
    """
    waiting = ""
    for text in texts:
        waiting += text
        found = [waiting.find(stop) for stop in stops if stop in waiting]
        if found:
            if min(found):
                yield waiting[: min(found)]
            return
        possible = [n for stop in stops for n in range(1, len(stop)) if waiting.endswith(stop[:n])]
        ready = len(waiting) - max(possible, default=0)
        if ready:
            yield waiting[:ready]
        waiting = waiting[ready:]
    if waiting:
        yield waiting
