"""One self-contained HTML page: text, tables and inline SVG; no script, no font, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pnnh.report.table import Row, printable, show

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title><style>
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5d6b7a; --line: #e3e8ee; --tint: #f6f8fa; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --soft: #a9b4c0; --line: #333c46; --tint: #232a31; --page: #14191e; }
  figure svg:not(.own) { filter: invert(1) hue-rotate(180deg); }
  figure:has(image) svg:not(.own) { filter: none; background: #fff; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
.lead { color: var(--soft); margin: 0 0 1.4rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .5rem 1.5rem; }
.figures.wide { grid-template-columns: 1fr; } figure { margin: .6rem 0; } figure svg { width: 100%; height: auto; }
.note { color: var(--soft); font-size: .9rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
summary::marker { color: var(--soft); }
ul.reading { padding-left: 1.1rem; } ul.reading li { margin: .35rem 0; }
footer { margin-top: 3rem; padding-top: 1rem; color: var(--soft); font-size: .85rem; }
footer table { width: 100%; } footer th, footer td { text-align: left; white-space: normal; vertical-align: top; }
footer td { overflow-wrap: anywhere; }
@media (max-width: 32rem) { body { margin-top: 1.2rem; } .tall th { white-space: normal; }
  .tall table, .tall tbody, .tall tr, .tall td { display: block; } .tall thead { display: none; }
  .tall tr { padding: .4rem 0; border-bottom: 1px solid var(--line); } .tall tr td:first-child { font-weight: 600; }
  .tall td { border: 0; padding: .05rem 0; text-align: left; white-space: normal; }
  .tall td:not(:first-child)::before { content: attr(title) ": "; color: var(--soft); } }
</style></head><body>
<h1>{{ page.title }}</h1><p class="lead">{{ page.lead }}</p>
{% for section in page.sections %}<section>
{% if section.folded %}<details><summary>{{ section.title }}</summary>
{% else %}<h2>{{ section.title }}</h2>{% endif %}
{% if section.reading %}<ul class="reading">
{% for line in section.reading %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if section.svgs %}<div class="figures{{ " wide" if section.svgs|length == 1 }}">
{% for svg in section.svgs %}<figure>{{ svg|safe }}</figure>{% endfor %}</div>{% endif %}
{% if section.caption %}<p class="note">{{ section.caption }}</p>{% endif %}
{% if section.rows %}<div class="scroll{{ " tall" if section.rows|length < 25 }}"><table><thead><tr>
{% for key in section.rows[0] %}<th>{{ key|replace("_", " ") }}</th>{% endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>
{% for key, value in row.items() %}<td title="{{ key|replace("_", " ") }}">{{ show(value) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if section.folded %}</details>{% endif %}</section>{% endfor %}
<footer><table>{% for name, value in evidence %}
<tr>{% if name %}<th>{{ name }}</th>{% endif %}<td{{ "" if name else " colspan=2" }}>{{ value }}</td></tr>{% endfor %}
</table></footer>
</body></html>
"""


@dataclass(frozen=True)
class Section:
    """A heading, then each part that is given: sentences, figures (SVG text), a caption, a table of rows.

    folded: only the heading shows until it is opened, for parts that few will read through.
    """

    title: str
    reading: Sequence[str] = ()
    svgs: Sequence[str] = ()
    caption: str = ""
    rows: Sequence[Row] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report. `evidence` closes it as a table: lines of text, or (name, value) entries of a mapping."""

    title: str
    lead: str
    sections: Sequence[Section]
    evidence: Sequence[str] | Mapping[str, str] = field(default=())


def evidence_of(record: Mapping[str, Any], **more: str) -> dict[str, str]:
    """The closing table of a page from a record's environment, and `more` entries after it."""
    device = record["device"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if number)
    threads = f", {device['threads']} thread(s)" if "threads" in device else ""
    names = {"Command": record["command"], "Date": record["date"], "Code": record["code_version"]}
    return {**names, "Versions": versions, "Device": device["name"] + threads, **more}


def html(page: Page) -> str:
    """`page` as one HTML text that needs nothing else."""
    from jinja2 import Environment

    lines = page.evidence.items() if isinstance(page.evidence, Mapping) else [("", line) for line in page.evidence]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable)
    return environment.from_string(_TEMPLATE).render(page=page, show=show, evidence=lines)


def _printable(value: object) -> object:
    """Texts without control characters; SVG, which is marked as safe, as it is."""
    return printable(value) if type(value) is str else value
