"""Tokenizers: read, extend, check, measure."""
