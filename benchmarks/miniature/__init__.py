"""The paper in miniature: the whole method on models of a few million weights, measured. See docs/miniature.md."""
