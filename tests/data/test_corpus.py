import json
import sysconfig

import pytest
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import Document, fingerprint, load_documents, split_documents
from nl_jax.errors import InputError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def texts(documents):
    return [document.text for document in documents]


def parts(splits):
    return splits.train, splits.validation, splits.test


def joined(splits):
    return texts(splits.train + splits.validation + splits.test)


def test_a_text_file_is_one_document_with_its_bytes_as_they_are(tmp_path):
    content = "first\r\nsecond é\n\tthird".encode()
    file = write(tmp_path / "book.txt", content)
    assert load_documents(str(file)) == [Document("book.txt", content)]


def test_a_directory_is_read_recursively_sorted_without_hidden_binary_and_empty_files(tmp_path, monkeypatch):
    for name, content in {
        "b.txt": b"bee",
        "a/z.md": b"zed",
        "a/lines.jsonl": b'{"text": "one"}\n\n{"text": "two"}\n',
        "empty.txt": b"",
        "picture.png": b"\x89PNG\0\xff",
        "data.bin": b"\0",
        ".hidden": b"no",
        ".git/config": b"no",
        "a/.cache/x.txt": b"no",
    }.items():
        write(tmp_path / name, content)
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    documents = load_documents(str(tmp_path))
    assert documents == [
        Document("a/lines.jsonl:1", b"one"),
        Document("a/lines.jsonl:3", b"two"),
        Document("a/z.md", b"zed"),
        Document("b.txt", b"bee"),
    ]
    assert len(warnings) == 1
    assert "2 binary (data.bin, picture.png)" in warnings[0]


def test_jsonl_takes_the_key_asked_for_and_unescapes(tmp_path):
    lines = [{"body": "line\nbreak é", "text": 1}, {"body": ""}, {"body": "b"}]
    content = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(line).encode() for line in lines)
    file = write(tmp_path / "d.JSONL", content)
    assert load_documents(str(file), text_key="body") == [
        Document("d.JSONL:1", "line\nbreak é".encode()),
        Document("d.JSONL:3", b"b"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", ["empty.txt", "an empty file"]),
        ("blank.jsonl", b"\n \n", ["blank.jsonl", "an empty file"]),
        ("latin.txt", b"caf\xe9 au lait", ["latin.txt", "not UTF-8 at byte 3"]),
        ("latin.jsonl", b'{"text": "caf\xe9"}', ["latin.jsonl", "not UTF-8 at byte 13"]),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', ["bad.jsonl:2", "not JSON"]),
        ("deep.jsonl", b"[" * 200_000, ["deep.jsonl:1", "not JSON"]),
        ("list.jsonl", b'["a"]', ["list.jsonl:1", "got a list"]),
        ("key.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}', ["key.jsonl:2", "no key 'text'", "'body', 'id'"]),
        ("none.jsonl", b"{}", ["none.jsonl:1", "no key 'text'", "none"]),
        ("number.jsonl", b'{"text": 3, "id": 1}', ["number.jsonl:1", "got a int", "'text', 'id'"]),
        ("surrogate.jsonl", b'{"text": "\\ud800"}', ["surrogate.jsonl:1", "lone surrogate"]),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, expected):
    file = write(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        load_documents(str(file))
    assert all(part in str(error.value) for part in expected), error.value
    assert "\n" not in str(error.value)


def test_a_text_in_a_directory_that_is_not_utf8_is_an_error(tmp_path):
    write(tmp_path / "good.txt", b"good")
    write(tmp_path / "sub/latin.txt", b"caf\xe9")
    with pytest.raises(InputError, match=r"sub.latin\.txt: not UTF-8 at byte 3"):
        load_documents(str(tmp_path))


def test_a_directory_without_text_is_an_error(tmp_path):
    write(tmp_path / "picture.png", b"\0")
    with pytest.raises(InputError, match="a directory without any text"):
        load_documents(str(tmp_path))


@pytest.mark.parametrize("path", ["missing.txt", "", "x" * 5000])
def test_a_missing_path_is_an_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data path"):
        load_documents(path)


def test_the_default_corpus_is_the_standard_library_without_tests_and_tables():
    documents = load_documents()
    names = [document.name for document in documents]
    assert names == [document.name for document in load_documents()]
    assert "argparse.py" in names
    assert not any(
        part in {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages"}
        or part.startswith("_sysconfigdata")
        for name in names
        for part in name.split("/")
    )
    splits = split_documents(documents)
    total = sum(map(len, texts(documents)))
    for part in (splits.validation, splits.test):
        assert 0.05 <= sum(map(len, texts(part))) / total < 0.10


@pytest.mark.parametrize("exists", [True, False])
def test_a_python_without_its_source_is_an_error_that_says_what_to_do(tmp_path, monkeypatch, exists):
    library = tmp_path / "library"
    if exists:
        write(library / "test/test_os.py", b"x = 1")
        write(library / "latin.py", b"# caf\xe9")
        write(library / "empty.py", b"")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    with pytest.raises(InputError, match="data=PATH, text files"):
        load_documents()


@settings(deadline=None)
@given(
    st.lists(st.text("aé日🙂\n", min_size=1, max_size=8), min_size=1, max_size=20), st.randoms(use_true_random=False)
)
def test_splits_are_disjoint_complete_and_independent_of_the_order(bodies, random):
    documents = [Document(str(i), body.encode() * 50) for i, body in enumerate(bodies)]
    total = sum(map(len, texts(documents)))
    splits = split_documents(documents)
    assert splits == split_documents(documents)
    train, validation, test = (set(texts(part)) for part in parts(splits))
    assert train
    assert validation
    assert test
    whole = sorted(joined(splits)) == sorted(texts(documents))
    if whole and len(set(texts(documents))) >= 3:
        assert not train & validation
        assert not train & test
        assert not validation & test
        assert all(sum(map(len, texts(part))) >= 0.05 * total for part in parts(splits)[1:])
        assert sum(map(len, texts(splits.train))) >= total / 2
        # The order within a split is that of the documents, and shuffling them moves none to another split.
        assert all(part == sorted(part, key=lambda document: int(document.name)) for part in parts(splits))
        random.shuffle(documents)
        again = split_documents(documents)
        assert [set(texts(part)) for part in parts(again)] == [train, validation, test]
    else:  # cut: every distinct text once, in order, each piece valid UTF-8
        assert b"".join(joined(splits)) == b"".join(dict.fromkeys(texts(documents)))
        assert all(text.decode() for part in parts(splits) for text in texts(part))


def test_identical_documents_land_in_the_same_split():
    documents = [Document(f"{copy}-{i}", b"%d" % i * 10) for copy in range(3) for i in range(40)]
    splits = split_documents(documents)
    assert sum(len(part) for part in parts(splits)) == 120
    for part in parts(splits):
        assert part
        assert all(texts(part).count(text) == 3 for text in texts(part))


@pytest.mark.parametrize("copies", [1, 5])
def test_one_document_is_cut_at_line_ends_and_its_copies_are_dropped(copies):
    text = "".join(f"line {i} é\n" for i in range(1000)).encode()
    splits = split_documents([Document("a", text)] * copies)
    pieces = [b"".join(texts(part)) for part in parts(splits)]
    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert [len(piece) / len(text) for piece in pieces] == pytest.approx([0.9, 0.05, 0.05], abs=0.002)


def test_without_lines_a_cut_is_between_characters():
    for length in range(40, 60):
        splits = split_documents([Document("a", ("x" * (length % 3) + "日" * length).encode())])
        assert "".join(text.decode() for part in parts(splits) for text in texts(part)).count("日") == length


def test_two_documents_keep_their_names_and_boundary():
    splits = split_documents([Document("a", b"a" * 500), Document("b", b"b" * 500)])
    assert splits.train == [Document("a", b"a" * 500), Document("b", b"b" * 400)]
    assert splits.validation == splits.test == [Document("b", b"b" * 50)]


def test_training_is_never_the_small_part():
    """Three equal documents would be one a split; they are cut instead."""
    documents = [Document(letter, letter.encode() * 1000) for letter in "abc"]
    assert sum(map(len, texts(split_documents(documents).train))) == 2700


def test_too_little_text_is_an_error():
    with pytest.raises(InputError, match="3 bytes of text: expected enough"):
        split_documents([Document("a", b"abc")])


def test_fingerprint_tells_texts_and_boundaries_apart():
    one = fingerprint([Document("a", b"xy"), Document("b", b"z")])
    assert (one["documents"], one["bytes"], len(one["sha256"])) == (2, 3, 64)
    assert one == fingerprint([Document("renamed", b"xy"), Document("b", b"z")])
    assert one["sha256"] != fingerprint([Document("a", b"x"), Document("b", b"yz")])["sha256"]
    assert one["sha256"] != fingerprint([Document("b", b"z"), Document("a", b"xy")])["sha256"]
