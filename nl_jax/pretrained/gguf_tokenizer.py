"""Builds a tokenizer from the tables of a GGUF file: byte-level BPE, as GPT-2, SmolLM2, Llama 3 and Qwen have it."""

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from nl_jax.data import HuggingFaceTokenizer
from nl_jax.errors import InputError
from nl_jax.pretrained.gguf_files import GGUFFile

CONTROL, USER_DEFINED = 3, 4  # token types of the file
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    words = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), "isolated")
    return [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


# How a text is cut into words before merging, by the file's ``tokenizer.ggml.pre``.
PRE_TOKENIZERS = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), *_gpt2()],
    "llama-bpe": lambda: _split("{1,3}"),
    "llama3": lambda: _split("{1,3}"),
    "qwen2": lambda: _split(""),
}


def tokenizer_of(file: GGUFFile) -> HuggingFaceTokenizer:
    """The tokenizer of a file.

    Raises:
      InputError: for another kind of tokenizer, or missing tables.
    """
    kind, pre = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise InputError(f"{file.path}: tokenizer.ggml.model is {kind!r}; expected 'gpt2', which is byte-level BPE")
    if pre not in PRE_TOKENIZERS:
        expected = f"expected one of {', '.join(PRE_TOKENIZERS)}"
        raise InputError(f"{file.path}: tokenizer.ggml.pre is {pre!r}; {expected}")
    tokens, merges = file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise InputError(f"{file.path}: no tokenizer.ggml.tokens and .merges; expected the tables of the tokenizer")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    # Llama 3 takes a word that is a token as it is, whatever its merges would make of it
    whole_words = pre in ("llama-bpe", "llama3")
    model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=whole_words)
    tokenizer = tokenizers.Tokenizer(model)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre]())
    tokenizer.decoder = decoders.ByteLevel()
    types = file.field("tokenizer.ggml.token_type") or []
    for type_, add in ((CONTROL, tokenizer.add_special_tokens), (USER_DEFINED, tokenizer.add_tokens)):
        add([AddedToken(t, normalized=False) for t, own in zip(tokens, types, strict=False) if own == type_])
    return HuggingFaceTokenizer.from_json(tokenizer.to_str().encode(), f"tokenizer of {file.path}")
