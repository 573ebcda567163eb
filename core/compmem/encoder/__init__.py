"""Texts to vectors. The only package that imports sentence_transformers."""

from compmem.encoder.loading import LoadedEncoder, load_encoder, stock_encoder
from compmem.encoder.merged_calls import MergedCalls
from compmem.encoder.spans import TextWithSpans, paragraphs

__all__ = ["LoadedEncoder", "MergedCalls", "TextWithSpans", "load_encoder", "paragraphs", "stock_encoder"]
