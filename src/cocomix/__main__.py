"""`python -m cocomix`: the command line, for launchers such as torchrun."""

from cocomix.cli import main

if __name__ == "__main__":
    main()
