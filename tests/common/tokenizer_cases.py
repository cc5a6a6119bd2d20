"""Tokenizers of all kinds that a tokenizer.json can hold, trained on a few words."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXT = "hello world, hello there! the world's words: def f(x): return don't é 日本"
SPECIAL = ["<unk>", "</s>"]


def _trained(model, trainer, pre_tokenizer, decoder, normalizer=None):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def byte_level():
    """GPT-2, Llama 3."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    return _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def metaspace_bpe(unknown="<unk>"):
    """Llama 2, without its fallback to bytes; without an unknown token it drops what it does not know."""
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    return _trained(models.BPE(unk_token=unknown), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def unigram(unknown="<unk>"):
    """T5."""
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token=unknown, show_progress=False)
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


def word_piece(unknown="<unk>"):
    """BERT, uncased."""
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    tokenizer = _trained(
        models.WordPiece(unk_token="<unk>"),
        trainer,
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        normalizers.Lowercase(),
    )
    return tokenizer if unknown else _without_unknown(tokenizer, models.WordPiece)


def word_level(unknown="<unk>"):
    """A table of words."""
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    model = models.WordLevel(unk_token="<unk>")
    tokenizer = _trained(model, trainer, pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False))
    return tokenizer if unknown else _without_unknown(tokenizer, models.WordLevel)


def _without_unknown(tokenizer, model):
    vocabulary = {word: i for word, i in tokenizer.get_vocab().items() if word != "<unk>"}
    tokenizer.model = model(vocabulary, unk_token="<unk>")
    return tokenizer


ALL = {make.__name__: make for make in (byte_level, metaspace_bpe, unigram, word_piece, word_level)}


def saved(tokenizer, path):
    tokenizer.save(str(path))
    return str(path)
