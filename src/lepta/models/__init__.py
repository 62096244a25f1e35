"""Model folders: open, load, convert, write, describe."""
