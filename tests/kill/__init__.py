"""Random SIGKILLs over every stage of the command line, each resumed and compared: `python -m tests.kill`."""
