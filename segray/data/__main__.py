"""`python -m segray.data` is `segray data`."""

import sys

from segray.cli import main

main(["data", *sys.argv[1:]])
