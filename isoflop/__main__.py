"""`python -m isoflop`: the command line."""

from isoflop.cli.main import main

main()
