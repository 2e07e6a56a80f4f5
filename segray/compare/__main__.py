"""`python -m segray.compare` is `segray compare`."""

import sys

from segray.cli import main

main(["compare", *sys.argv[1:]])
