"""Text for language models, from documents to batches; labelled images and texts; recall and parity tasks."""

from nl_jax.data.class_streams import ClassStream, class_stream, class_tasks
from nl_jax.data.corpus import Splits, fingerprint, split_documents
from nl_jax.data.images import ImageData, ImageSet, load_digits, load_image_folder
from nl_jax.data.labelled import LABELLED_DATA, LabelledData, LabelledTexts, load_labelled
from nl_jax.data.packing import BOUNDARIES, Packed, lost_bytes, pack, padding_share, windows
from nl_jax.data.pipeline import EvaluationSet, TextData, evaluation_batches, load_text_data, train_iterator
from nl_jax.data.reading import Document, ReadSummary, Skipped, load_documents, read_documents
from nl_jax.data.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    continuation,
    decode_stream,
    load_tokenizer,
    until_stop,
    whole_characters,
)
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import recall_batch

__all__ = [
    "BOUNDARIES",
    "LABELLED_DATA",
    "PARITY_VOCABULARY",
    "ByteTokenizer",
    "ClassStream",
    "Document",
    "EvaluationSet",
    "HuggingFaceTokenizer",
    "ImageData",
    "ImageSet",
    "LabelledData",
    "LabelledTexts",
    "Packed",
    "ReadSummary",
    "Skipped",
    "Splits",
    "TextData",
    "Tokenizer",
    "class_stream",
    "class_tasks",
    "continuation",
    "decode_stream",
    "evaluation_batches",
    "fingerprint",
    "load_digits",
    "load_documents",
    "load_image_folder",
    "load_labelled",
    "load_text_data",
    "load_tokenizer",
    "lost_bytes",
    "pack",
    "padding_share",
    "parity_batch",
    "read_documents",
    "recall_batch",
    "split_documents",
    "train_iterator",
    "until_stop",
    "whole_characters",
    "windows",
]
