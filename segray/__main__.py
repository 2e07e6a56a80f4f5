"""`python -m segray` is `segray`."""

from segray.cli import main

main()
