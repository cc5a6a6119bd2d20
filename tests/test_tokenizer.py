import itertools

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from nl_jax.data import ByteTokenizer, Document, HuggingFaceTokenizer, load_tokenizer, pack
from nl_jax.errors import InputError

TEXT = "Hello hello world,  日本語 é 🙂\r\n\tdef f(x): return x </s> <|endoftext|> end "


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory):
    """A byte-level BPE, as GPT-2 and Llama 3 have, saved with truncation, padding and an end-of-text token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def bpe(bpe_file):
    return load_tokenizer(str(bpe_file))


def save_words(tmp_path, vocabulary, special=()):
    """A tokenizer that drops white space, as BERT's do."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(tmp_path / "words.json"))
    return str(tmp_path / "words.json")


@given(st.binary(max_size=50))
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids, counts = tokenizer.encode(text)
    assert (ids.dtype, counts.dtype) == (np.int32, np.int32)
    assert ids.tolist() == list(text)
    assert counts.tolist() == [1] * len(text)
    assert tokenizer.decode(ids) == text.decode("utf-8", errors="replace")


def test_bytes_leave_out_separators_and_ids_outside():
    assert ByteTokenizer.vocab_size == 257
    assert ByteTokenizer().decode(np.array([256, 65, 256, 300, -1, 66])) == "AB"
    assert ByteTokenizer().decode(np.array([65, 0xC3, 66])) == "A\ufffdB"
    assert ByteTokenizer().decode(np.array([], np.int32)) == ""


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_bpe_round_trips_and_counts_every_byte(bpe, text):
    ids, counts = bpe.encode(text.encode())
    assert (ids.dtype, counts.dtype) == (np.int32, np.int32)
    assert bpe.decode(ids) == text
    assert counts.sum() == len(text.encode())
    assert (counts >= 0).all()


def test_bpe_ignores_the_truncation_and_padding_it_was_saved_with(bpe):
    ids, counts = bpe.encode(TEXT.encode())
    assert 4 < len(ids) == len(counts) < 500
    assert bpe.decode(ids) == TEXT


def test_special_tokens_spelled_out_in_text_are_text(bpe):
    ids, _ = bpe.encode(b"a<|endoftext|>b")
    assert bpe.separator_id not in ids
    assert bpe.decode(ids) == "a<|endoftext|>b"


def test_a_character_of_several_tokens_counts_for_its_first(bpe):
    ids, counts = bpe.encode("a\u0416b".encode())
    assert len(ids) == 4
    assert counts.tolist() == [1, 2, 0, 1]


def test_bpe_separator_and_decoding_of_strange_ids(bpe, bpe_file):
    assert bpe.separator_id == 1
    assert bpe.vocab_size == 300
    ids, _ = bpe.encode("hé".encode())
    assert bpe.decode(np.array([1, *ids, 1, 5000, -1])) == "hé"
    half, _ = bpe.encode("\u0416".encode())
    assert bpe.decode(half[:1]) == "\ufffd"
    assert load_tokenizer(str(bpe_file.parent)).vocab_size == 300  # the directory will do


def test_skipped_white_space_counts_for_the_token_after_it(tmp_path):
    path = save_words(tmp_path, {"[UNK]": 0, "one": 1, "two": 2})
    tokenizer = HuggingFaceTokenizer(path)
    ids, counts = tokenizer.encode("  one \u00a0two é\n\n".encode())
    assert ids.tolist() == [1, 2, 0]
    assert counts.tolist() == [5, 6, 5]
    assert [len(array) for array in tokenizer.encode(b"  ")] == [0, 0]


@pytest.mark.parametrize(
    ("vocabulary", "special", "separator", "size"),
    [
        ({"[UNK]": 0, "one": 1}, [], 2, 3),  # none: a new id
        ({"[UNK]": 0, "one": 7}, [], 8, 9),  # gaps in the ids
        ({"[UNK]": 0, "one": 1}, ["[SEP]"], 2, 3),
        ({"[UNK]": 0, "[SEP]": 1, "<|endoftext|>": 2, "</s>": 3}, [], 3, 4),
        ({"[UNK]": 0, "[SEP]": 1, "<|endoftext|>": 2}, [], 2, 3),
        ({"[UNK]": 0, "[SEP]": 1, "<eos>": 2}, [], 2, 3),
    ],
)
def test_separator(tmp_path, vocabulary, special, separator, size):
    tokenizer = HuggingFaceTokenizer(save_words(tmp_path, vocabulary, special))
    assert (tokenizer.separator_id, tokenizer.vocab_size) == (separator, size)
    assert tokenizer.decode(np.array([separator])) == ""


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"missing\.json': no such file"):
        load_tokenizer(str(tmp_path / "missing.json"))
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(str(tmp_path))
    for content in (b"not json", b"{}", b"\x0a\x0e\xff"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.json': expected a Hugging Face tokenizer\.json"):
            load_tokenizer(str(tmp_path / "bad.json"))


def test_text_that_is_not_utf8(bpe):
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        bpe.encode(b"a\xff")


def test_no_path_means_bytes():
    assert isinstance(load_tokenizer(), ByteTokenizer)


@pytest.mark.parametrize("which", ["bytes", "bpe"])
def test_packing_round_trip(which, bpe):
    tokenizer = ByteTokenizer() if which == "bytes" else bpe
    bodies = [TEXT, "x", "日本" * 50]
    packed = pack([Document(str(i), body.encode()) for i, body in enumerate(bodies)], tokenizer)
    assert packed.tokens.dtype == np.uint16
    assert packed.tokens.shape == packed.bytes_per_token.shape
    assert packed.bytes_per_token.sum() == sum(len(body.encode()) for body in bodies)
    (separators,) = np.nonzero(packed.tokens == tokenizer.separator_id)
    assert separators[0] == 0
    assert separators[-1] == len(packed.tokens) - 1
    assert (packed.bytes_per_token[separators] == 0).all()
    pieces = [packed.tokens[a + 1 : b] for a, b in itertools.pairwise(separators)]
    assert [tokenizer.decode(piece) for piece in pieces] == bodies


def test_packing_takes_the_smallest_type_that_holds_ids_and_counts(tmp_path):
    small = HuggingFaceTokenizer(save_words(tmp_path, {"[UNK]": 0, "one": 254}))  # the separator is 255
    packed = pack([Document("a", b"one"), Document("b", b"y" * 70_000)], small)
    assert (packed.tokens.dtype, packed.tokens.tolist()) == (np.uint8, [255, 254, 255, 0, 255])
    assert packed.bytes_per_token.tolist() == [0, 3, 0, 70_000, 0]
    large = HuggingFaceTokenizer(save_words(tmp_path, {"[UNK]": 0, "one": 65_535}))
    assert pack([Document("a", b"one")], large).tokens.tolist() == [65_536, 65_535, 65_536]


def test_packing_nothing_gives_one_separator():
    assert pack([], ByteTokenizer()).tokens.tolist() == [256]
