"""One self-contained HTML page: text, tables and inline SVG; no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pnnh.report.table import Row, printable, show

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title><style>
:root { color-scheme: light; --ink: #1d2733; --soft: #5d6b7a; --line: #e3e8ee; --tint: #f6f8fa; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
.lead { color: var(--soft); margin: 0 0 1.4rem; } figure { margin: 1rem 0; overflow-x: auto; }
figure svg { width: 100%; min-width: 34rem; height: auto; }
figcaption, .note { color: var(--soft); font-size: .9rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
summary::marker { color: var(--soft); }
ul.reading { padding-left: 1.1rem; } ul.reading li { margin: .35rem 0; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .85rem; }
code { background: var(--tint); padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ page.title }}</h1><p class="lead">{{ page.lead }}</p>
{% for section in page.sections %}<section>
{% if section.folded %}<details><summary>{{ section.title }}</summary>
{% else %}<h2>{{ section.title }}</h2>{% endif %}
{% if section.reading %}<ul class="reading">
{% for line in section.reading %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% for svg in section.svgs %}<figure>{{ svg|safe }}</figure>{% endfor %}
{% if section.caption %}<p class="note">{{ section.caption }}</p>{% endif %}
{% if section.rows %}<div class="scroll"><table><thead><tr>
{% for key in section.rows[0] %}<th>{{ key|replace("_", " ") }}</th>{% endfor %}</tr></thead><tbody>
{% for row in section.rows %}<tr>{% for value in row.values() %}<td>{{ show(value) }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endif %}
{% if section.folded %}</details>{% endif %}</section>{% endfor %}
<footer>{% for line in page.evidence %}<div>{{ line }}</div>{% endfor %}</footer>
</body></html>
"""


@dataclass(frozen=True)
class Section:
    """A heading, then what there is of: sentences, figures (SVG text), a caption, a table of rows.

    folded: only the heading shows until it is opened, for what few want to read through.
    """

    title: str
    reading: Sequence[str] = ()
    svgs: Sequence[str] = ()
    caption: str = ""
    rows: Sequence[Row] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report. `evidence` lines (command, versions, device, date) close it."""

    title: str
    lead: str
    sections: Sequence[Section]
    evidence: Sequence[str] = field(default=())


def html(page: Page) -> str:
    """`page` as one HTML text that needs nothing else."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable)
    return environment.from_string(_TEMPLATE).render(page=page, show=show)


def _printable(value: object) -> object:
    """Texts without control characters; SVG, which is marked as safe, as it is."""
    return printable(value) if type(value) is str else value
