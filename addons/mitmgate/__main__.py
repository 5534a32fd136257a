"""``python -m mitmgate``: the same as the ``mitmgate`` command."""

from mitmgate.cli import main

if __name__ == "__main__":
    main()
