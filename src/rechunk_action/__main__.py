"""`python -m rechunk_action`."""

from rechunk_action.cli import main

main()
