"""Errors that are the user's to mend: the command line prints their text alone, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong: the message names the file or key, what is wrong and what to do."""
