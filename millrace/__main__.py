# shell
"""``python -m millrace``: the command line."""

from millrace.cli import main

if __name__ == "__main__":
    main()
