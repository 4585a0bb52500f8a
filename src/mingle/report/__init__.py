"""Results to look at: one self-contained HTML page, and tables for a terminal, Markdown, LaTeX and CSV."""

from mingle.report.html import render_html, write_report
from mingle.report.writers import as_csv, latex, markdown, terminal

__all__ = ["as_csv", "latex", "markdown", "render_html", "terminal", "write_report"]
