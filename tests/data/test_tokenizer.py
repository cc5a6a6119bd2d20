import hashlib
import itertools

import numpy as np
import pytest
import tokenizer_cases as cases
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from nl_jax.data import (
    ByteTokenizer,
    Document,
    HuggingFaceTokenizer,
    continuation,
    decode_stream,
    load_text_data,
    load_tokenizer,
    lost_bytes,
    pack,
    whole_characters,
)
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


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kinds")
    return {
        name: load_tokenizer(cases.saved(make(), directory / f"{name}.json")) for name, make in cases.ALL.items()
    } | {"bytes": ByteTokenizer()}


KINDS = [*cases.ALL, "bytes"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte_level"])
def test_a_continuation_keeps_the_space_before_it(kind, kinds):
    tokenizer = kinds[kind]
    context, whole = (tokenizer.encode(text)[0].tolist() for text in (b"hello", b"hello return"))
    assert whole[: len(context)] == context
    assert continuation(tokenizer, context, whole[len(context) :]) == " return"
    assert "".join(decode_stream(tokenizer, whole[len(context) :], context)) == " return"
    assert "".join(decode_stream(tokenizer, whole)) == "hello return"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 260), max_size=20), cut=st.integers(0, 20))
def test_a_text_is_the_same_wherever_it_is_cut_and_however_it_comes(kind, kinds, ids, cut):
    """Any tokens, broken characters, separators and ids outside the vocabulary among them."""
    tokenizer = kinds[kind]
    whole = tokenizer.decode(np.array(ids, int))
    context, rest = ids[:cut], ids[cut:]
    before, after = tokenizer.decode(np.array(context, int)), continuation(tokenizer, context, rest)
    assert whole.endswith(after)
    assert before.startswith(whole[: len(whole) - len(after)])
    assert "".join(decode_stream(tokenizer, iter(rest), context)) == after


def test_a_character_cut_by_the_seam_belongs_to_what_completes_it():
    ids = list("aé€😀b".encode())
    for cut in range(len(ids)):
        pieces = list(decode_stream(ByteTokenizer(), ids[cut:], ids[:cut]))
        whole = bytes(ids[:cut]).decode(errors="ignore")
        assert whole + "".join(pieces) == "aé€😀b"
        assert "\ufffd" not in "".join(pieces)


@given(st.text(st.characters(codec="utf-8"), max_size=9))
def test_whole_characters(text):
    data = text.encode()
    for end in range(len(data) + 1):
        assert whole_characters(data[:end]) == len(data[:end].decode(errors="ignore").encode())


@pytest.mark.parametrize("kind", ["unigram", "word_piece", "word_level"])
def test_unknown_text_without_a_token_for_it_is_one_line_that_names_file_and_text(kind, tmp_path):
    path = cases.saved(cases.ALL[kind](unknown=None), tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    assert len(tokenizer.encode(b"hello world,")[0])
    with pytest.raises(InputError, match=r"cannot encode 'Ж+'") as error:
        tokenizer.encode("hello ЖЖЖ world,".encode())
    assert path in str(error.value)
    with pytest.raises(InputError, match=r"book\.txt: tokenizer"):
        pack([Document("book.txt", "Ж".encode())], tokenizer)


def test_the_digest_is_of_the_files_content(bpe, bpe_file, tmp_path):
    copy = tmp_path / "copy.json"
    copy.write_bytes(bpe_file.read_bytes())
    assert load_tokenizer(str(copy)).digest == bpe.digest == hashlib.sha256(bpe_file.read_bytes()).hexdigest()
    copy.write_bytes(bpe_file.read_bytes() + b"\n")
    assert load_tokenizer(str(copy)).digest != bpe.digest
    assert ByteTokenizer().digest == "bytes"


@pytest.mark.parametrize(
    ("kind", "unknown", "text", "lost"),
    [
        ("byte_level", None, "Any text:  日本 \t🙂", 0),
        ("metaspace_bpe", "<unk>", "hello world", 0),
        ("metaspace_bpe", None, "hello ЖЖЖ", 6),  # dropped
        ("metaspace_bpe", "<unk>", "hello ЖЖЖ", 6),  # unknown
        ("unigram", "<unk>", "hello ЖЖЖ", 6),
        ("word_piece", "<unk>", "hello ЖЖЖ", 6),
        ("word_piece", "<unk>", "Hello WORLD", 6),  # in small letters
        ("word_piece", "<unk>", "hello \n\t world", 3),  # one space is given back
        ("word_level", "<unk>", "hello qqqq", 4),
    ],
)
def test_lost_bytes_are_those_that_decoding_does_not_give_back(kind, unknown, text, lost, tmp_path):
    make = cases.ALL[kind]
    path = cases.saved(make() if kind == "byte_level" else make(unknown), tmp_path / "tokenizer.json")
    tokenizer, documents = load_tokenizer(path), [Document("a", b"hello"), Document("b", text.encode())]
    assert lost_bytes(documents, pack(documents, tokenizer), tokenizer).tolist() == [0, lost]


@pytest.mark.parametrize("kind", ["metaspace_bpe", "unigram", "word_piece", "word_level"])
def test_a_tokenizer_that_flatters_is_refused_in_one_line(kind, tmp_path):
    path = cases.saved(cases.ALL[kind](None if kind == "metaspace_bpe" else "<unk>"), tmp_path / "tokenizer.json")
    data = tmp_path / "data"
    data.mkdir()
    for i in range(20):
        (data / f"{i}.txt").write_text("hello world, hello there! " * 20 + "é " * (i % 3))
    assert load_text_data(str(data), path).lost_share < 0.01
    for i in range(20):
        (data / f"{i}.txt").write_text(f"hello {'Ж' * i}", encoding="utf-8")
    with pytest.raises(InputError, match=r"loses [6-9]\d\.\d% of the text's bytes, such as 'Ж' in 19\.txt") as error:
        load_text_data(str(data), path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
