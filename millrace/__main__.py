# core
"""``python -m millrace``: the command line."""

from millrace.commands.cli.cli import main

if __name__ == "__main__":
    main()
