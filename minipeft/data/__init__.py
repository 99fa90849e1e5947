"""Data: readers for TSV, CSV, JSON lines and raw text, tokenizers, batches, and CPython's manual as a corpus."""

from .batching import IGNORE, Batch, block_mask, blocks_of, collate, make_batches, mask_tokens
from .pydocs import corpus, paragraphs, section_task
from .readers import Dataset, Example, read_dataset, read_texts
from .sources import Source, by_source, read_sources
from .tokenizer import Encoding, Encodings, Tokenizer, train_wordpiece

__all__ = ["IGNORE", "Batch", "Dataset", "Encoding", "Encodings", "Example", "Source", "Tokenizer", "block_mask", "blocks_of",
           "by_source", "collate", "corpus", "make_batches", "mask_tokens", "paragraphs", "read_dataset", "read_sources",
           "read_texts", "section_task", "train_wordpiece"]
