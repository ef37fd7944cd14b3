"""Numbers frozen before the rebuild: what the code computes must not change while its rooms are rewritten.

    python -m tests.frozen            record the numbers of the code as it is (only when a change is meant)
    python -m tests.frozen --check    compare the code with what is recorded, and print a table

`tests/frozen/test_frozen.py` makes the same comparison under pytest. Three modules:

    material    texts, a tokenizer, teachers and dictionaries, drawn from seeds; knows nothing of cocomix
    cases       what is recorded: settings of labels, corpora, training recipes, prompts; plain values
    world       runs the cases; the only module that calls cocomix, so the only one to adapt when its API changes

Shard files, manifests and fingerprints are not recorded: their format is free to change.
"""
