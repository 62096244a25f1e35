"""Darumeru: 17 tasks of Russian and English that tell what a model can do (docs/darumeru.md)."""
