"""Show rows, whoever made them: terminal tables, CSV, JSON, SVG figures, one HTML page."""

from pnnh.report.bench import bench_page, bench_reading, of_work
from pnnh.report.figure import COLOURS, draw
from pnnh.report.markdown import markdown
from pnnh.report.page import Page, Section, html
from pnnh.report.table import Row, csv_text, json_text, printable, show, terminal, write_text

__all__ = [
    "COLOURS",
    "Page",
    "Row",
    "Section",
    "bench_page",
    "bench_reading",
    "csv_text",
    "draw",
    "html",
    "json_text",
    "markdown",
    "of_work",
    "printable",
    "show",
    "terminal",
    "write_text",
]
