"""`python -m lepta` is the command `lepta`."""

from lepta.cli import main

main()
