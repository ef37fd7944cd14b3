"""What typographic quotation marks do to the differences: python results/scarce/quotes.py SWEEP_FOLDER

Writes quotes.json beside this file. Found after the fact in the losses of every token, so a lead and no test: nats per
token of every arm, means over seeds, over all tokens, over those with “ ” ‘ or ’, and the rest; of the first mark also
after it occurred in the context and before.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from cocomix.data import Tokens

sweep = Path(sys.argv[1])
tokenizer = Tokens.open(sweep / "data").tokenizer()
marked = [token for token in range(len(tokenizer)) if set(tokenizer.decode([token])) & set("“”‘’")]
(opening,) = tokenizer.encode("“", add_special_tokens=False)
found: dict[str, dict[str, float]] = {}
for arm in sorted((sweep / "runs").iterdir()):
    runs = [pd.read_parquet(file) for file in sorted(arm.glob("seed?/evaluations/*/losses.parquet"))]
    mean = runs[0].assign(loss=sum(run["loss"] for run in runs) / len(runs))
    quotes, first = mean["token"].isin(marked), mean["token"] == opening
    parts = {
        "all": first | ~first,
        "marks": quotes,
        "rest": ~quotes,
        "opening, after one": first & mean["seen"],
        "opening, the first": first & ~mean["seen"],
    }
    found[arm.name] = {name: float(mean["loss"][part].mean()) for name, part in parts.items()}
    found[arm.name] |= {"seeds": len(runs), "share of marks": float(quotes.mean())}
Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
