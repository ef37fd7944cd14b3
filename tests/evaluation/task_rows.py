"""A few rows of every downstream task, made up here, in the schema of the task's data set."""

import json
from pathlib import Path
from typing import Any

ROWS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [{"text": "the list of items returns the list"}, {"text": "a key and a value and a key"}],
    "wikitext": [
        {"page": " = List = \n \n The list , of 1 @,@ 000 items , has a key . \n"},
        {"page": " = Key = \n a \n"},
    ],
    "hellaswag": [
        {
            "ind": 1,
            "activity_label": "Making a list",
            "ctx_a": "A list is made.",
            "ctx_b": "the list",
            "ctx": "A list is made. The list",
            "endings": ["returns items.", "[title] eats  a key.", "is a value.", "sings."],
            "label": "0",
        }
    ],
    "piqa": [
        {"goal": "Find a key", "sol1": "look in the index", "sol2": "look in the file of the other list", "label": 0},
        {"goal": "Find a value", "sol1": "sing", "sol2": "use the key", "label": 1},
    ],
    "social_iqa": [
        {
            "context": "Kai lost the list.",
            "question": "What will Kai do?",
            "answerA": "find it",
            "answerB": "eat",
            "answerC": "sing",
            "label": "1",
        }
    ],
    "arc_easy": [
        {
            "id": "x",
            "question": "Which is a key?",
            "choices": {"text": ["index", "string", "café"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        }
    ],
    "winogrande": [
        {
            "sentence": "The key fits the file because the _ is small.",
            "option1": "key",
            "option2": "file",
            "answer": "1",
        }
    ],
}


def write_rows(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
