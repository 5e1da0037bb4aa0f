"""Prompts for JSON objects with given keys, without answers: what is right can be checked, and need not be written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

SUBJECTS = {
    "book": ("title", "author", "year", "pages"),
    "city": ("name", "country", "population", "river"),
    "recipe": ("dish", "minutes", "servings", "cuisine"),
    "car": ("brand", "model", "colour", "doors"),
    "animal": ("species", "habitat", "legs", "diet"),
    "film": ("title", "director", "genre", "length"),
    "person": ("first_name", "last_name", "age", "job"),
    "planet": ("name", "moons", "radius", "gas"),
    "song": ("title", "singer", "album", "seconds"),
    "flight": ("number", "from", "to", "departure"),
    "hotel": ("name", "stars", "rooms", "street"),
    "plant": ("name", "height", "flower", "season"),
    "job offer": ("position", "company", "salary", "town"),
    "email": ("sender", "subject", "date", "urgent"),
    "invoice": ("customer", "amount", "currency", "due"),
    "football match": ("home", "guest", "score", "stadium"),
    "laptop": ("maker", "memory", "weight", "price"),
    "museum": ("name", "city", "opened", "free"),
    "meeting": ("topic", "room", "start", "people"),
    "language": ("name", "speakers", "script", "family"),
    "river": ("name", "length", "mouth", "source"),
    "phone": ("brand", "screen", "battery", "price"),
    "course": ("subject", "teacher", "weeks", "level"),
    "bridge": ("name", "city", "length", "built"),
    "painting": ("title", "painter", "year", "museum"),
}
rows = []
for subject, keys in SUBJECTS.items():
    for chosen in [*itertools.combinations(keys, 2), *itertools.combinations(keys, 3)]:
        named = ", ".join(f'"{key}"' for key in chosen[:-1]) + f' and "{chosen[-1]}"'
        article = "an" if subject[0] in "aei" else "a"
        prompt = (
            f"Invent {article} {subject} and describe it as a JSON object with the keys {named}. Answer with JSON only."
        )
        rows.append({"prompt": prompt, "keys": list(chosen)})
folder = Path(__file__).parent / "data"
folder.mkdir(exist_ok=True)
file = folder / "prompts.jsonl"
file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
print(f"{file}: {len(rows)} rows")
