# ruff: noqa: F821 - the cell that includes this file defines SETTINGS
import csv
import io


def image_ids(folder):
    """Ids of the files with an image's suffix, in subfolders too, without hidden ones; the name alone decides."""
    names = []
    for place, folders, files in os.walk(folder):
        shown = [name for name in (*folders, *files) if not name.startswith(".") and name != "__MACOSX"]
        here = [name for name in shown if name.lower().endswith(tuple(SETTINGS["suffixes"]))]
        names += [(Path(place).relative_to(folder) / name).as_posix() for name in here]
        folders[:] = [name for name in folders if name in shown and name not in here]
    short = sorted(names) if SETTINGS["ids_have_folder"] else [name.rpartition("/")[2] for name in sorted(names)]
    return short if SETTINGS["ids_have_suffix"] else [name.rpartition(".")[0] for name in short]


def listed_ids(table):
    """Ids that a table lists, whatever separates its cells."""
    text = table.read_text(encoding="utf-8-sig")
    for separator in ",;\t|":
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        for column in SETTINGS["id_columns"]:
            if column in header:
                return [row[header.index(column)] for row in rows if row]
    raise ValueError(f"{table} has none of the columns {SETTINGS['id_columns']}")


def csv_line(cells):
    """A line of CSV; a cell with a comma, a quote or a line's end (csv.writer misses the carriage return) in quotes."""
    cells = [str(cell) for cell in cells]
    quoted = ['"{}"'.format(cell.replace('"', '""')) if set(cell) & set(',"\r\n') else cell for cell in cells]
    return ",".join(quoted) + "\n"
