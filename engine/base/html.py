"""Tables as HTML, for `_repr_html_` of what notebooks show.

They have no style of their own, except that texts are aligned left and keep their spaces.
"""

from collections.abc import Sequence
from html import escape

_STYLE = 'style="text-align: left; white-space: pre-wrap"'  # on each cell: Jupyter has rules for cells


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), title: str = "") -> str:
    """Returns a table; the first cell of each row names it.

    Args:
        rows: the cells of each row, as plain text.
        header: names of the columns.
        title: a caption.
    """
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = f"<thead>{_row(header, 'th')}</thead>" if header else ""
    return f"<table>{caption}{head}<tbody>{''.join(_row(row, 'td') for row in rows)}</tbody></table>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text that keeps its lines."""
    return f'<p style="white-space: pre-wrap">{escape(text)}</p>'


def _row(cells: Sequence[str], tag: str) -> str:
    scope = "row" if tag == "td" else "col"
    others = "".join(f"<{tag} {_STYLE}>{escape(cell)}</{tag}>" for cell in cells[1:])
    return f'<tr><th scope="{scope}" {_STYLE}>{escape(cells[0])}</th>{others}</tr>' if cells else ""
