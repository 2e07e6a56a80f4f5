"""`python -m segray.sweep` is `segray sweep`."""

import sys

from segray.cli import main

main(["sweep", *sys.argv[1:]])
