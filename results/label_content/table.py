"""The table of README.md from the folders labels_NAME of `run.sh`: python results/label_content/table.py FOLDER"""

import sys
from pathlib import Path

from cocomix.labelling import Labels

NAMES = ("activation", "contextual", "attribution", "random", "future_words", "future_clusters")
HEADINGS = (
    "labels", "C", "first 4 of one list, %", "first 4 of the token's list, %", "first 32 of one list, %",
    "first 32 of the token's list, %", "H(label)", "H(label given token)", "concepts used", "commonest concept, %",
)  # fmt: skip


def main() -> None:
    """Print it as Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|---{'|---:' * (len(HEADINGS) - 1)}|"]
    for name in NAMES:
        folder = Path(sys.argv[1]) / f"labels_{name}"
        if not folder.is_dir():
            continue
        found = Labels.open(folder).manifest.content
        assert found is not None
        recalls = (
            found.static_recall_at_labels, found.token_recall_at_labels,
            found.static_recall_at_32, found.token_recall_at_32,
        )  # fmt: skip
        cells = [
            name, f"{found.num_concepts:,}", *(f"{100 * recall:.1f}" for recall in recalls), f"{found.entropy:.2f}",
            f"{found.entropy_given_token:.2f}", f"{found.concepts_used:,}", f"{100 * found.top_share:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
