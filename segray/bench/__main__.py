"""`python -m segray.bench` is `segray bench`."""

import sys

from segray.cli import main

main(["bench", *sys.argv[1:]])
