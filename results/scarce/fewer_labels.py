"""The best k labels of every position, from a folder that holds more.

    python results/scarce/fewer_labels.py LABELS DATA K OUTPUT

A teacher's labels come best first: these are the ones that it would give if asked for k, and it need not read again.
"""

import sys
from pathlib import Path

import numpy as np

from cocomix.data import Tokens
from cocomix.labelling import Labels

source, data, k, output = Labels.open(Path(sys.argv[1])), Tokens.open(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
if not 1 <= k <= source.manifest.k:
    sys.exit(f"{source.path} holds {source.manifest.k} labels a position; give a k from 1 to that, not {k}.")
made = source.manifest.model_dump(mode="json", exclude={"files", "statistics", "content"})
made["labels"]["k"] = k
identity = source.manifest.identity | {"labels": made["labels"]}
with Labels.create(output, identity=identity) as staging:
    for file in (file["name"] for split in made["splits"].values() for file in split):
        np.save(staging.path / f"{file}.ids.npy", source.array(file, "ids")[..., :k])
        np.save(staging.path / f"{file}.counts.npy", np.minimum(source.array(file, "counts"), k))
        if made["scores"] != "none":
            np.save(staging.path / f"{file}.scores.npy", source.array(file, "scores")[..., :k])
    counted = Labels.counted(staging.path, made, data)
    staging.finish(Labels.manifest_type.model_validate({**made, **counted}))
