"""The one error that users are meant to see."""


class LeptaError(Exception):
    """Something the user can mend: says where it is, what was expected and what to do.

    The command line prints the message on one line and exits with code 2; the traceback stays behind `--debug`.
    """
