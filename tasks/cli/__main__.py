"""`python -m tasks.cli`: the command line without its installed script."""

from tasks.cli.main import main

main()
