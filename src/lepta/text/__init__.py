"""Text: where it is, how it is stored, as a stream of documents."""
