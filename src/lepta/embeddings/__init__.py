"""Between two vocabularies: the transfer matrix T, initialisation, propagation."""
