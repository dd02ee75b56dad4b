"""Errors that a user can act on. The command line prints their one message and no traceback."""


class RegiongridError(Exception):
    """Something went wrong that the message explains (exit code 1 at the command line)."""


class InputError(RegiongridError, ValueError):
    """The input cannot be used: file, shape, option or data (exit code 2 at the command line)."""


class UnsupportedOperatorError(InputError):
    """The network has an operator that is not piecewise affine and that feeds a breakpoint."""


class UnsafeCheckpointError(InputError):
    """The file holds pickled code; loading it needs an explicit permission."""


class MemoryLimitError(InputError):
    """The request does not fit into the memory that it may use."""
