"""The concepts to turn: of those with 100 held-out labels and predicted at no more than half of the positions, the 16
that an atlas finds the most precise.

    python results/steering/scarce/choose.py ATLAS_FOLDER
"""

import sys
from pathlib import Path

import pandas as pd

cards = pd.read_parquet(Path(sys.argv[1]) / "cards.parquet")
usable = cards[(cards.label_count >= 100) & (cards.density <= 0.5)]
best = usable.sort_values(["precision", "id"], ascending=[False, True]).head(16)
sys.stdout.write(",".join(str(concept) for concept in best.id) + "\n")
