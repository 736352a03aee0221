"""``python -m levelfield`` is the command ``levelfield``."""

from levelfield.cli import main

main(prog_name="levelfield")
