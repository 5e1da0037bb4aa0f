"""The pieces of a page: style, escaping, tables, a row shown side by side. One look for light, dark, phone and print."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from tunewright.core.pii import masked

CSS = """
:root{--ink:#17191c;--soft:#6d737b;--paper:#fff;--panel:#f5f6f4;--line:#dfe2de;--accent:#17694c;--other:#b4632a;--bad:#a92f2f;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e9ebe8;--soft:#9aa29c;--paper:#15181a;--panel:#1e2225;--line:#33393c;--accent:#5fc49c;--other:#e39a62;--bad:#ec8080}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:62rem;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.8rem 0 .6rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{margin:.5rem 0;max-width:46rem}
.verdict{font-size:2.1rem;line-height:1.2;font-weight:700;margin:.1rem 0 .5rem;letter-spacing:-.01em}
.good{color:var(--accent)}.bad{color:var(--bad)}.even{color:var(--other)}.lead{font-size:1.1rem;max-width:48rem}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1.4rem 0 .4rem}
.tile{background:var(--panel);border-radius:.6rem;padding:.75rem .9rem}.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.86rem}
figure{margin:1rem 0;overflow-x:auto}svg{width:100%;min-width:24rem;max-width:46rem;height:auto;display:block}
.scroll{overflow-x:auto;margin:.7rem 0}table{border-collapse:collapse;width:100%;font-size:.92rem}
th{text-align:left;color:var(--soft);font-weight:600}th,td{padding:.42rem .8rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:pre}td:first-child{white-space:nowrap}th{vertical-align:bottom}td.why{color:var(--soft);min-width:16rem}
code,pre,.text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.84rem}
pre{background:var(--panel);padding:.8rem 1rem;border-radius:.6rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}
.row{background:var(--panel);border-radius:.6rem;padding:.8rem 1rem;margin:.7rem 0;break-inside:avoid}
.row dl{display:grid;grid-template-columns:6.2rem 1fr;gap:.25rem .8rem;margin:0}.row dt{color:var(--soft);font-size:.86rem}.row dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
details summary{cursor:pointer;color:var(--soft);margin:.6rem 0}.warning{color:var(--other)}.error{color:var(--bad)}.hash{overflow-wrap:anywhere}
@media(max-width:38rem){main{padding:1.2rem .9rem 3rem}.verdict{font-size:1.6rem}.row dl{grid-template-columns:1fr}.row dt{margin-top:.35rem}}
@media print{:root{--ink:#000;--paper:#fff;--panel:#f4f4f4;--line:#ccc;--soft:#555;--accent:#17694c;--other:#8a4717;--bad:#8f1d1d}main{max-width:none;padding:0}h2{break-after:avoid}details{display:block}body{font-size:11pt}}
"""


def e(value: object) -> str:
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = (), why: int | None = None) -> str:
    """Cells are escaped. ``numbers``: columns set right; ``why``: the column that explains."""

    def cell(tag: str, i: int, value: object) -> str:
        kind = ' class="n"' if i in numbers else ' class="why"' if i == why and tag == "td" else ""
        return f"<{tag}{kind}>{e(value)}</{tag}>"

    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{"".join(cell("th", i, h) for i, h in enumerate(head))}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page: no script, nothing from elsewhere."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{e(title)}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def entry(pairs: Iterable[tuple[str, object]]) -> str:
    """A panel of names and texts: what looks private masked, long texts cut."""
    shown = "".join(f"<dt>{e(k)}</dt><dd class=text>{e(masked(str(v))[:1500])}</dd>" for k, v in pairs if v not in (None, ""))
    return f'<div class="row"><dl>{shown}</dl></div>'


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    return f'<div class="tiles">{"".join(f"<div class=tile><b>{e(a)}</b><span>{e(b)}</span></div>" for a, b in pairs)}</div>'


def spaced(name: str) -> str:
    return name.replace("_", " ")


def between(interval: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    low, high = (f"{x:+.{digits}f}" if sign else f"{x:.{digits}f}" for x in interval)
    return f"{low} to {high}"
