"""What a page says: its tables' cells and its text."""

from html.parser import HTMLParser


class Cells(HTMLParser):
    """Every table's rows as lists of cell texts, and the page's text."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.text, self.cell = [], "", None
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.cell = "" if tag in ("td", "th") else self.cell

    def handle_endtag(self, tag):
        self.text += " " if tag in ("p", "li", "div", "h1", "h2", "h3") else ""
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data

    def row(self, *start):
        """The one row that begins with these cells, without them."""
        (found,) = [row for row in self.rows if tuple(row[: len(start)]) == start]
        return found[len(start) :]
