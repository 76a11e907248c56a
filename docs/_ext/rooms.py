"""The page of a room is made of the room: its names in a table on top, then each in full.

`` ```{room} rsfl.bounds`` in a page of docs/api stands for all that ``rsfl.bounds`` makes public,
by the files in which it is defined, whose first sentence says what they are for. The lines within
name the files that come first. What is added to a room is on its page without anybody's doing.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform

OTHER = "more"  # what a room has from elsewhere, or from its one file
TABLE = """\
.. list-table::
   :header-rows: 1
   :class: names
   :widths: 32 68
"""
ROOM = re.compile(r"^```\{room\} (\S+)\n(.*?)```$", flags=re.DOTALL | re.MULTILINE)


def sentence(doc: str | None) -> str:
    """The first sentence of a docstring, which may take several lines."""
    first = " ".join((doc or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s(?=[A-Z`])", first)[0].rstrip(":")


def kind(value: Any) -> str:
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) and hasattr(value, "__name__") else "data"


def grouped(room: ModuleType, first: list[str]) -> dict[str, list[tuple[str, Any]]]:
    """The public names of a room by the file that defines them, in the order of that file."""
    files: dict[str, list[tuple[str, Any]]] = {name: [] for name in first}
    taken: set[int] = set()
    for name in room.__all__:
        value = getattr(room, name)
        if isinstance(value, ModuleType):  # a namespace within the room
            inner = [(f"{name}.{one}", getattr(value, one)) for one in value.__all__]
            files.setdefault(name, []).extend(p for p in inner if id(p[1]) not in taken)
        else:
            home = getattr(value, "__module__", None) or ""
            inside = home.startswith(f"{room.__name__}.")
            last = home.rpartition(".")[2] if inside else OTHER
            files.setdefault(last, []).append((name, value))
            taken.add(id(value))
    files[OTHER] = files.pop(OTHER, [])  # to the end
    return {name: sorted(pairs, key=line) for name, pairs in files.items() if pairs}


def line(pair: tuple[str, Any]) -> int:
    try:
        return inspect.getsourcelines(inspect.unwrap(pair[1]))[1]
    except TypeError:  # a number or a tuple
        return 0


def noted(room: ModuleType, name: str) -> list[str]:
    """What is said below a constant in the file that defines it: its own type's words are none."""
    parts = [part.name for part in pkgutil.iter_modules(getattr(room, "__path__", []))]
    for home in (room.__name__, *(f"{room.__name__}.{part}" for part in parts)):
        found = ModuleAnalyzer.for_module(home).find_attr_docs().get(("", name))
        if found:
            return list(found)
    return []


def page(room_name: str, first: list[str]) -> str:
    """The tables and the entries as the Markdown of a page, below its title."""
    room = importlib.import_module(room_name)
    files = grouped(room, first)
    tables, parts = [], []
    for name, pairs in files.items():
        home = f"{room_name}.{name}"
        about = sentence(importlib.import_module(home).__doc__) if name != OTHER else ""
        title = name if len(files) > 1 else "names"
        rows = [TABLE, f"   * - {title}\n     - {about}"]
        for label, value in pairs:
            doc = sentence(value.__doc__) if kind(value) != "data" else ""
            rows.append(f"   * - :py:obj:`{label} <{room_name}.{label}>`\n     - {doc}")
        tables.append("\n".join(rows))
        body = [f"## {title}\n\n```{{eval-rst}}"]
        if any("." in label for label, _ in pairs):
            body.append(f".. automodule:: {home}\n")
        elif about:
            body.append(f"{about}\n")
        for label, value in pairs:
            if kind(value) == "data":
                body.append(f".. py:data:: {label}\n   :module: {room_name}\n")
                body += [f"   {line}" for line in noted(room, label)]
                body.append("")
                continue
            body.append(f".. auto{kind(value)}:: {room_name}.{label}")
            if kind(value) == "class":
                body.append(
                    "   :members:\n   :inherited-members: object, tuple, Mapping, Sequence, Module"
                )
            body.append("")
        parts.append("\n".join([*body, "```"]))
    head = (
        f"```{{eval-rst}}\n.. automodule:: {room_name}\n\n"
        + "\n\n".join(tables)
        + "\n```"
    )
    return "\n\n".join([head, *parts])


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    for found in ROOM.finditer(source[0]):  # whose page is made again when it changes
        room = importlib.import_module(found[1])
        for file in [Path(__file__), *Path(inspect.getfile(room)).parent.glob("*.py")]:
            app.env.note_dependency(str(file), docname=docname)
    source[0] = ROOM.sub(lambda found: page(found[1], found[2].split()), source[0])


class Links(SphinxPostTransform):
    """A public name in a text is a link to what it names, whether or not somebody made it one.

    Names with a dot, such as ``fed.certify``, and names that only one room has and that cannot be
    an argument's: classes, functions and methods of two words.
    """

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        known = targets(self.env)
        for node in list(self.document.findall(nodes.literal)):
            text = re.sub(
                r"\([^()]*\)", "", node.astext()
            )  # as a name is written where it is called
            target = known.get(text)
            within = node.parent
            if target is None or isinstance(
                within, nodes.reference | addnodes.pending_xref
            ):
                continue
            if isinstance(within, nodes.title):
                continue
            link = addnodes.pending_xref(
                "",
                node.deepcopy(),
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refexplicit=True,
            )
            link["refdoc"] = self.env.docname
            node.replace_self(link)


def targets(env: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    short: dict[str, set[str]] = {}
    methods: dict[str, str] = {}
    for name, _, kind_, *_ in env.domains.python_domain.get_objects():
        parts = name.split(".")
        if parts[0] != "rsfl" or len(parts) < 2:
            continue
        found[name] = name
        if len(parts) > 2:
            found[".".join(parts[1:])] = name
            bare = parts[-1]
            if len(parts) == 3 and (re.match(r"[A-Z]\w*[a-z]", bare) or "_" in bare):
                short.setdefault(bare, set()).add(name)
            if len(parts) == 4 and parts[2][0].isupper():
                found[".".join(parts[2:])] = name
                if (
                    kind_ == "method" and "_" in bare[1:]
                ):  # of the class with the shortest name
                    methods[bare] = min(
                        methods.get(bare, name), name, key=lambda n: (len(n), n)
                    )
    return (
        methods
        | found
        | {bare: min(names) for bare, names in short.items() if len(names) == 1}
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    app.add_post_transform(Links)
    return {"parallel_read_safe": True}
