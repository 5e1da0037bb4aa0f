"""Write the bundled probes: generic.jsonl (text of four kinds) and knowledge.jsonl (questions with four choices).

    python scripts/make_probes.py      (Debian or Ubuntu, for apt-get; pip)

Sources, all free to redistribute: The Devil's Dictionary (Bierce 1911, public domain), the Jargon File (public domain),
the constitution and declaration of independence of the United States (public domain), SQLite's documentation (public
domain), the trivia of chatterbot-corpus (BSD-3-Clause, Gunther Cox and contributors), and the capitals below (facts).
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tunewright.cli.demo import fetch

OUT = Path(__file__).parent.parent / "tunewright" / "judge" / "probes"
DEBIAN = ("dict-devil", "dict-jargon", "sqlite3-doc", "miscfiles")
PAGES = (
    "whentouse",
    "howtocorrupt",
    "testing",
    "queryplanner",
    "atomiccommit",
    "fasterthanfs",
    "selfcontained",
    "lts",
    "quirks",
    "appfileformat",
)
EACH = 48_000
PASSAGE = 1_600
CAPITALS = """
France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Greece Athens|Austria Vienna|Hungary Budapest|
Poland Warsaw|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Iceland Reykjavik|Ireland Dublin|
Belgium Brussels|Netherlands Amsterdam|Romania Bucharest|Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|
Slovenia Ljubljana|Slovakia Bratislava|Ukraine Kyiv|Russia Moscow|Turkey Ankara|Egypt Cairo|Morocco Rabat|
Algeria Algiers|Tunisia Tunis|Libya Tripoli|Kenya Nairobi|Ethiopia Addis_Ababa|Ghana Accra|Nigeria Abuja|
Senegal Dakar|Angola Luanda|Zambia Lusaka|Zimbabwe Harare|Uganda Kampala|Rwanda Kigali|Somalia Mogadishu|
Sudan Khartoum|Madagascar Antananarivo|Japan Tokyo|China Beijing|India New_Delhi|Pakistan Islamabad|Bangladesh Dhaka|
Nepal Kathmandu|Thailand Bangkok|Vietnam Hanoi|Cambodia Phnom_Penh|Laos Vientiane|Indonesia Jakarta|
Philippines Manila|Malaysia Kuala_Lumpur|Mongolia Ulaanbaatar|Iran Tehran|Iraq Baghdad|Syria Damascus|Lebanon Beirut|
Jordan Amman|Qatar Doha|Oman Muscat|Yemen Sanaa|Afghanistan Kabul|Kazakhstan Astana|Uzbekistan Tashkent|
Georgia Tbilisi|Armenia Yerevan|Canada Ottawa|Mexico Mexico_City|Cuba Havana|Jamaica Kingston|Haiti Port-au-Prince|
Guatemala Guatemala_City|Panama Panama_City|Brazil Brasilia|Argentina Buenos_Aires|Chile Santiago|Peru Lima|
Colombia Bogota|Venezuela Caracas|Ecuador Quito|Uruguay Montevideo|Paraguay Asuncion|Australia Canberra|
New_Zealand Wellington|Fiji Suva
"""


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        subprocess.run(["apt-get", "download", "-q", *DEBIAN], cwd=at, check=True, capture_output=True)
        for package in at.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, at], check=True)
        archive = fetch("chatterbot-corpus==1.3.3", at)
        texts = {
            "satire": devil(at),
            "computing culture": jargon(at),
            "law": "\n\n".join(plain(at / f"usr/share/state/us-{x}.gz") for x in ("constitution", "declaration")),
            "technical": "\n\n".join(page(at / f"usr/share/doc/sqlite3/{p}.html") for p in PAGES),
        }
        with open(OUT / "generic.jsonl", "w", encoding="utf-8") as file:
            for kind, text in texts.items():
                for piece in passages(text)[: EACH // PASSAGE]:
                    print(json.dumps({"kind": kind, "text": piece}, ensure_ascii=False), file=file)
        with open(OUT / "knowledge.jsonl", "w", encoding="utf-8") as file:
            for item in [*trivia(archive), *capitals()]:
                print(json.dumps(item, ensure_ascii=False), file=file)
    for name in ("generic", "knowledge"):
        results = OUT / f"{name}.jsonl"
        print(results, results.stat().st_size, "bytes,", results.read_text().count("\n"), "lines")


def plain(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode("utf-8", "replace")


def flowing(text: str) -> str:
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if len(p.split()) > 8)


def devil(at: Path) -> str:
    text = plain(at / "usr/share/dictd/devil.dict.dz")
    return flowing(text[text.index("ABNORMAL, adj.") :])


def jargon(at: Path) -> str:
    text = plain(at / "usr/share/dictd/jargon.dict.dz")
    return flowing(re.sub(r"[{}]", "", text[len(text) // 4 :]))


def page(file: Path) -> str:
    text = re.sub(r"(?s)<(script|style|pre|table|svg)\b.*?</\1>", " ", file.read_text("utf-8", "replace"))
    text = re.sub(r"(?i)</?(p|h[1-6]|li|div|blockquote)\b[^>]*>", "\n\n", text)
    return flowing(html.unescape(re.sub(r"<[^>]+>", "", text)))


def passages(text: str) -> list[str]:
    results, now = [], ""
    for paragraph in flowing(text).split("\n\n"):
        if now and len(now) + len(paragraph) > PASSAGE:
            results.append(now)
            now = ""
        now = f"{now}\n\n{paragraph}" if now else paragraph[: 2 * PASSAGE]
    return results


def chosen(question: str, right: str, others: list[str]) -> dict[str, object]:
    """Three wrong choices and the position of the right one, chosen by hash alone."""

    def key(text: str) -> str:
        return hashlib.sha256(f"{question}\x00{text}".encode()).hexdigest()

    wrong = sorted({o for o in others if o.casefold() != right.casefold()}, key=key)[:3]
    choices = sorted([right, *wrong], key=lambda c: key(f"place {c}"))
    return {"question": question, "choices": choices, "answer": choices.index(right)}


def trivia(archive: Path) -> list[dict[str, object]]:
    with tarfile.open(archive) as tar:
        name = next(n for n in tar.getnames() if n.endswith("data/english/trivia.yml"))
        text = tar.extractfile(name).read().decode()  # type: ignore[union-attr]
    pairs = []
    for question, answer in re.findall(r"^- - (.+?)^  - (.+?)(?=^- - |\Z)", text, re.M | re.S):
        question, answer = (" ".join(x.split()).strip("'\"").replace("''", "'") for x in (question, answer))
        if question.endswith("?") and " - " not in answer and len(answer) < 60:
            pairs.append((question, answer.rstrip(".")))

    def alike(answer: str) -> bool:
        return answer[:1].isdigit()

    return [chosen(q, a, [b for _, b in pairs if alike(a) == alike(b)]) for q, a in pairs]


def capitals() -> list[dict[str, object]]:
    pairs = [tuple(x.strip().replace("_", " ") for x in pair.split()) for pair in CAPITALS.replace("\n", "").split("|")]
    return [chosen(f"What is the capital of {country}?", city, [c for _, c in pairs]) for country, city in pairs]


if __name__ == "__main__":
    main()
