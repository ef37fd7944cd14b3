"""Docstrings of Python's standard library that the demo did not train on, in two halves.

python stdlib.py DEMO_DATA FOLDER
"""

import json
import sys
import sysconfig
from pathlib import Path

import numpy as np

from cocomix.data import Tokens
from cocomix.data.documentation import documentation_texts

data, folder = Tokens.open(sys.argv[1]), Path(sys.argv[2])
read = data.tokenizer().decode(np.load(data.file("train-00000.npy")).ravel().tolist())
kept, size = [], 0
for _, text in documentation_texts([Path(sysconfig.get_paths()["stdlib"])]):
    if 600 < len(text) < 9_000 and text[20:120] not in read:  # long enough to be prose, short enough not to dominate
        kept.append(text)
        size += len(text)
    if size > 190_000:
        break
for name, texts in (("rest", kept[::2]), ("heldout", kept[1::2])):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
