# shell
"""``python -m commands``: the command line."""

from commands.cli.cli import main

if __name__ == "__main__":
    main()
