"""Training text out of raw text: cleaned, judged, free of duplicates and of the benchmark, weighed."""
