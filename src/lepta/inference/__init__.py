"""Running a model: generation, scoring, bits per byte, speed, servers."""
