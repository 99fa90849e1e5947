"""The report's page: its style in light and in dark, its tables, its figures, and the few lines of script that sort a table.

Everything that is given as text is escaped here; what is already HTML is a `Html`.
"""

import re
from dataclasses import dataclass, field
from html import escape

COLOURS = """
:root { color-scheme: light dark; --paper: #fdfcfa; --ink: #1d1d1f; --soft: #5b5b62; --line: #d5d3ce; --tint: #f3f1ec;
  --c0: #0b62a4; --c1: #b8470a; --c2: #00734f; --c3: #9c3876; --c4: #7a6000; --c5: #2a7c94; --c6: #5f5f66; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #ececee; --soft: #a6a7ae; --line: #3b3d43; --tint: #202226;
  --c0: #6bb5f0; --c1: #f59358; --c2: #3fcb9e; --c3: #e892c4; --c4: #dfbc45; --c5: #7fd0e6; --c6: #b4b4bb; } }
"""
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
STYLE = COLOURS + """* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 1.0625rem/1.55 """ + FONT + """; }
main, header, footer { display: grid; grid-template-columns: minmax(1.1rem, 1fr) minmax(0, 40rem) minmax(1.1rem, 1fr); }
section { display: contents; }
main > *, section > *, header > *, footer > * { grid-column: 2; min-width: 0; }
.wide { grid-column: 1 / -1; justify-self: center; width: min(100% - 2.2rem, 54rem); }
div.wide { width: auto; min-width: min(100% - 2.2rem, 40rem); max-width: min(100% - 2.2rem, 76rem); margin: 0.6rem 0 1rem; }
header { padding: 4.5rem 0 1rem; }
h1 { font-size: clamp(1.8rem, 1.2rem + 2.4vw, 2.6rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 0.6rem;
  text-wrap: balance; overflow-wrap: anywhere; }
.under { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; line-height: 1.25; margin: 4.2rem 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0 0 1rem; overflow-wrap: anywhere; }
p.seen { font-size: 1.125rem; }
.note { color: var(--soft); font-size: 0.9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.3rem; margin: 1.4rem 0 0; padding: 0.8rem 0 0;
  border-top: 1px solid var(--line); font-size: 0.9rem; }
a { color: var(--c0); text-underline-offset: 0.18em; text-decoration-thickness: 1px; }
figure { margin: 1.2rem 0 0; }
figure + figure { margin-top: 2.6rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--c0); outline-offset: 4px; }
figure svg { display: block; width: 100%; min-width: 41rem; height: auto; font-family: inherit; }
figure svg * { stroke-linejoin: round; }
figure svg text { font-variant-numeric: tabular-nums; stroke: none; }
figcaption { color: var(--soft); font-size: 0.9rem; max-width: 40rem; margin: 0.7rem auto 0; }
details { margin: 0.8rem auto 0; width: 100%; max-width: 40rem; font-size: 0.9rem; }
summary { cursor: pointer; color: var(--soft); width: fit-content; }
details[open] summary { margin-bottom: 0.6rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: 0.42rem 0 0.42rem 1.1rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; font-weight: 600; white-space: normal;
  min-width: 6.6rem; max-width: 18rem;
  overflow-wrap: break-word; position: sticky; left: 0; background: var(--paper); }
td.words { text-align: left; white-space: normal; min-width: 13rem; font-weight: 400; vertical-align: top; }
tr:has(td.words) td { vertical-align: top; }
th.words { text-align: left; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; border-bottom: 1px solid var(--ink);
  white-space: pre; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody tr:hover, tbody tr:hover td { background: var(--tint); }
td.best { font-weight: 700; }
.mark { color: var(--c0); font-weight: 400; }
thead button { all: unset; cursor: pointer; white-space: pre; }
thead button:hover, thead button:focus-visible { color: var(--ink); text-decoration: underline; text-underline-offset: 0.2em; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
footer { padding: 4rem 0 3rem; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 34rem) { th:first-child, td:first-child { max-width: 9.5rem; }
  header { padding-top: 2.2rem; } h2 { margin-top: 3rem; } }
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } figure svg { min-width: 0; }
  nav { display: none; } }
"""
# Without the script every table is there in the order of the comparison; with it a click on a heading sorts the rows.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const words = !body.querySelector(`td:nth-child(${i + 1})[data-value]`);
      const down = head.ariaSort ? head.ariaSort === "ascending" : !words;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, i), value(b, i)];
        if (words) return (down ? -1 : 1) * x.localeCompare(y, undefined, {numeric: true});
        return (x === "") - (y === "") || (down ? y - x : x - y);
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.ariaSort = down ? "descending" : "ascending";
      body.append(...rows);
    };
  });
}
"""


class Html(str):
    """Text that is HTML already."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number to sort by (None: sort as words, or last among numbers), and whether it is the best."""

    text: str
    value: float | None = None
    best: bool = False


@dataclass
class Section:
    """A part of the report: an id, a heading, one sentence that says what is seen, and the HTML below it."""

    id: str
    heading: str
    seen: str
    parts: list = field(default_factory=list)

    def html(self):
        return (f'<section aria-labelledby="{self.id}"><h2 id="{self.id}">{safe(self.heading)}</h2>\n'
                f'<p class="seen">{safe(self.seen)}</p>\n' + "\n".join(self.parts) + "\n</section>")


def safe(text):
    """Text as HTML."""
    return text if isinstance(text, Html) else escape(str(text))


def table(heads, rows, sortable=False, words=()):
    """A table; cells are strings, `Html` or `Cell`; the columns of ``words`` (numbers from 0) hold prose."""
    left = lambda i: ' class="words"' if i in words else ""
    head = "".join(f'<th scope="col"{left(i)}>{safe(name)}</th>' for i, name in enumerate(heads))
    body = "".join("<tr>" + "".join(cell_html(cell, i in words) for i, cell in enumerate(row)) + "</tr>\n" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def cell_html(cell, prose):
    """One ``<td>``."""
    if not isinstance(cell, Cell):
        cell = Cell(cell)
        sort = ""
    else:
        sort = f' data-value="{"" if cell.value is None else repr(float(cell.value))}"'
    kind = " ".join(["words"] * prose + ["best"] * cell.best)
    return "<td" + (f' class="{kind}"' if kind else "") + f"{sort}>{safe(cell.text)}</td>"


def wide(inner, label):
    """A wide part that scrolls sideways where the window is narrow, also by the keyboard."""
    return f'<div class="wide scroll" tabindex="0" role="region" aria-label="{escape(label)}">{inner}</div>'


def figure(svg, caption, label, data):
    """A figure: the drawing, what it shows, and its numbers as a table that opens; ``data`` are `table`'s arguments."""
    return (f'<figure class="wide"><div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{svg}</div>\n'
            f"<figcaption>{safe(caption)}</figcaption>\n"
            f'<details><summary>The numbers</summary><div class="scroll">{table(*data)}</div></details></figure>')


def alone(html):
    """The first drawing of a part of the page as a file of its own, with the page's colours, in light and in dark."""
    svg = re.search(r"<svg.*?</svg>", html, re.S)[0]
    style = (f"{COLOURS}svg {{ background: var(--paper); font-family: {FONT}; }} "
             "* { stroke-linejoin: round; } text { stroke: none; }")
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title>", f"<style>{style}</style><title>", 1)


def page(title, under, sections):
    """The whole document."""
    links = "".join(f'<li><a href="#{s.id}">{safe(s.heading)}</a></li>' for s in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{safe(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{safe(title)}</h1>
<p class="under">{safe(under)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{chr(10).join(section.html() for section in sections)}
</main>
<footer><p>Made by minipeft. ± is one sample standard deviation over the seeds; without it there was one seed.</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""
