"""Results to look at: one self-contained HTML page, a Markdown table, a terminal table."""

from mingle.report.html import render_html, write_report
from mingle.report.table import markdown, terminal

__all__ = ["markdown", "render_html", "terminal", "write_report"]
