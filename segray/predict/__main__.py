"""`python -m segray.predict` is `segray predict`."""

import sys

from segray.cli import main

main(["predict", *sys.argv[1:]])
