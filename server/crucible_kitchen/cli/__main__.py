"""`python -m crucible_kitchen.cli`: the command without its script."""

from crucible_kitchen.cli.app import main

main()
