"""What is raised when the user, not the program, can mend it."""


class UserError(Exception):
    """One sentence: the file, flag or tensor; what was expected; what was found. Scripts print it and exit with 2."""


class DeviceError(UserError):
    """A device failed, or was lost, while it worked: nothing that it holds can be read any more."""
