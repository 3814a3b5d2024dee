"""``python -m pathline.evals`` is the command line."""

from .cli import main

main()
