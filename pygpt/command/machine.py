"""The flags that say what a program computes with: those of training, which the other programs have too."""

from __future__ import annotations

from pygpt.backends.interface import DTYPES
from pygpt.command.cli import positive_int
from pygpt.command.flags import Parser
from pygpt.training.settings import FIELDS


def add_machine_flags(parser: Parser, all_kernels: bool = False) -> None:
    """--device, --dtype, --kernels and --threads; all_kernels: the program takes each set unless one is named."""
    for name in ("device", "dtype", "kernels"):
        choices, help, default = FIELDS[name].metadata["choices"], FIELDS[name].metadata["help"], FIELDS[name].default
        if name == "dtype":
            choices, help, default = DTYPES, "operands of matrix products", "float32"
        if name == "kernels" and all_kernels:
            help, default = f"only these; {help}", None
        parser.add_argument(f"--{name}", choices=choices, default=default, help=help)
    parser.add_argument("--threads", type=positive_int, metavar="N", help=FIELDS["threads"].metadata["help"])
