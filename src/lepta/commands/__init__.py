"""Commands: parse, call, print. Everything they do can be called from Python too (see `lepta`)."""
