"""Random and hostile input: every case ends in a result or in one sentence, and leaves nothing half written.

`python -m tests.fuzz --cases 20000 --seed 0 --output results/fuzz` is the long run; the tests run a few of each kind.
"""
