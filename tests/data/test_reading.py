"""Files to documents: every kind of file, links, encodings, packing, and the account of what is left out."""

import codecs
import gzip
import json
import os
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import Document, load_text_data, read_documents
from nl_jax.errors import InputError

TEXT = "first é\r\nsecond 日本語 🙂\n"
PACKINGS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".GZ": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),  # members one after the other
    ".Zst": lambda data: b"".join(
        [
            struct.pack("<II", 0x184D2A50, 3) + b"any",  # a frame to skip, as pzstd writes
            zstandard.ZstdCompressor().compress(data[:7]),
            zstandard.ZstdCompressor(write_content_size=False).compress(data[7:]),
        ]
    ),
}


def json_lines(*texts):
    return "\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()


KINDS = {
    "plain.txt": (TEXT.encode(), [TEXT]),
    "no_suffix": (TEXT.encode(), [TEXT]),
    "lines.jsonl": (json_lines(TEXT, "b"), [TEXT, "b"]),
    "lines.ndjson": (json_lines(TEXT, "b"), [TEXT, "b"]),
    "array.json": (json.dumps([{"text": TEXT}, {"text": "b"}], indent=1).encode(), [TEXT, "b"]),
    "object.json": (json.dumps({"text": TEXT}).encode(), [TEXT]),
}
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def texts(documents):
    return [document.text.decode() for document in documents]


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_packed_or_not_and_in_every_marked_encoding(name, packing, tmp_path):
    content, expected = KINDS[name]
    encodings = {"unmarked": content}
    encodings |= {coding: mark + content.decode().encode(coding) for coding, mark in MARKED.items()}
    for coding, data in encodings.items():
        write(tmp_path / coding / (name + packing), PACKINGS[packing](data))
        alone, summary = read_documents(str(tmp_path / coding / (name + packing)))
        below, again = read_documents(str(tmp_path / coding))
        assert texts(alone) == expected
        assert below == alone
        assert summary == again
        assert (summary.files, summary.documents, summary.skipped) == (1, len(expected), {})
        assert summary.bytes == sum(len(text.encode()) for text in expected)


BAD = {
    "latin.txt": b"caf\xe9 au lait",
    "latin.jsonl": b'{"text": "caf\xe9"}',
    "null.jsonl": b'{"text": null}',
    "null.ndjson": b'{"text": null}',
    "null.json": b'[{"text": null}]',
    "markup.json": b'{"title": "no text"}',
    "number.json": b"3",
    "broken.json": b'{"text": ',
    "empty_array_in_one.json": b"[[]]",
    "odd.txt": codecs.BOM_UTF16_LE + b"a",
    "plain.gz": b"not packed",
    "plain.zst": b"not packed",
    "cut.txt.gz": gzip.compress(TEXT.encode())[:-3],
    "cut.txt.zst": zstandard.ZstdCompressor().compress(TEXT.encode() * 9)[:-3],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_stops_in_one_line_or_is_skipped_counted_and_named(name, tmp_path):
    write(tmp_path / "good.txt", b"good")
    file = write(tmp_path / name, BAD[name])
    for path in (tmp_path, file):
        with pytest.raises(InputError) as error:
            read_documents(str(path))
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
    documents, summary = read_documents(str(tmp_path), skip_bad=True)
    assert documents == [Document("good.txt", b"good")]
    assert summary.skipped["bad"].count == 1
    assert str(file) in summary.skipped["bad"].first[0]
    assert "1 bad" in str(summary)
    assert str(file) in str(summary)
    with pytest.raises(InputError, match="1 bad"):
        read_documents(str(file), skip_bad=True)


def test_bad_records_leave_the_good_ones(tmp_path):
    write(tmp_path / "a.jsonl", json_lines("one") + b'\n{"text": null}\n\n{"text": "caf\xe9"}\n' + json_lines("two"))
    write(tmp_path / "b.json", json.dumps([{"text": "three"}, {"text": 4}, 5, {"text": ""}]).encode())
    documents, summary = read_documents(str(tmp_path), skip_bad=True)
    assert [(d.name, d.text) for d in documents] == [
        ("a.jsonl:1", b"one"),
        ("a.jsonl:5", b"two"),
        ("b.json:1", b"three"),
    ]
    assert {reason: skipped.count for reason, skipped in summary.skipped.items()} == {"bad": 4, "empty": 1}


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_unmarked_wide_text_is_not_read_as_text_full_of_nul_bytes(coding, tmp_path):
    file = write(tmp_path / "wide.txt", "some text".encode(coding))
    with pytest.raises(InputError, match="NUL bytes, so it is binary or UTF-16 without a byte-order mark"):
        read_documents(str(file))
    write(tmp_path / "good.txt")
    documents, summary = read_documents(str(tmp_path))
    assert texts(documents) == ["x"]
    assert (summary.skipped["binary"].count, summary.skipped["binary"].first) == (1, ["wide.txt"])


def test_the_summary_counts_what_is_left_out_by_reason(tmp_path):
    for name in (".hidden", ".git/config", "a/.cache/x.txt", "run/log.txt", "a/good.txt"):
        write(tmp_path / name)
    write(tmp_path / "picture.png", b"\0")
    write(tmp_path / "empty.txt", b"")
    (tmp_path / "link.txt").symlink_to("nowhere")
    (tmp_path / "same.txt").symlink_to("a/good.txt")
    os.mkfifo(tmp_path / "pipe")
    documents, summary = read_documents(str(tmp_path), exclude=lambda directory: directory.name == "run")
    assert [document.name for document in documents] == ["a/good.txt"]
    assert {reason: skipped.count for reason, skipped in summary.skipped.items()} == {
        **{"hidden": 3, "binary": 1, "empty": 1, "broken links": 1, "repeated": 1, "special": 1, "excluded": 1}
    }
    assert str(summary).startswith("1 files, 1 documents, 1 bytes; skipped 3 hidden (.git, .hidden, a/.cache)")
    assert json.loads(json.dumps(summary.as_json()))["skipped"]["empty"] == {"count": 1, "first": ["empty.txt"]}
    with pytest.raises(InputError, match="the directory of a run"):
        read_documents(str(tmp_path), exclude=lambda directory: directory == tmp_path)


def test_many_are_named_by_the_first_few(tmp_path):
    for i in range(9):
        write(tmp_path / f".{i}")
    write(tmp_path / "a")
    assert str(read_documents(str(tmp_path))[1]).endswith("skipped 9 hidden (.0, .1, .2, .3, .4, ...)")


# Links of a directory `i` to a directory `j`, by any of them to any of them or to the root: cycles and copies.
LINKS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), max_size=8, unique=True)


@settings(deadline=None, max_examples=40)
@given(links=LINKS, nested=st.booleans())
def test_each_real_file_is_read_once_however_directories_are_linked(links, nested, tmp_path_factory):
    root, outside = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("outside")
    homes = [root / "d0", root / "d0/d1" if nested else root / "d1", outside / "d2", outside / "d2/d3"]
    for i, home in enumerate(homes):
        write(home / "file.txt", f"text {i}".encode())
    (root / "way").symlink_to(outside)
    for i, j in links:
        (homes[i] / f"to{j}").symlink_to(root if j < 0 else homes[j])
    documents, _ = read_documents(str(root))
    assert sorted(texts(documents)) == [f"text {i}" for i in range(4)]
    names = [document.name.split("/") for document in documents]
    assert names == sorted(names)


def test_the_same_texts_have_one_fingerprint_wherever_they_lie_and_however_packed(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(99)).encode()
    write(tmp_path / "plain/a.txt", lines)
    write(tmp_path / "packed/other.txt.gz", gzip.compress(lines))
    (tmp_path / "link").symlink_to("plain")
    found = [load_text_data(str(tmp_path / name)).fingerprint for name in ("plain", "packed", "link")]
    assert found[0] == found[1] == found[2]
    assert found[0]["tokenizer"] == "bytes"
