"""The page of a room is made of the room: its names in a table on top, then each in full.

`` ```{room} rsfl.bounds`` in a page of docs/api stands for all that ``rsfl.bounds`` makes public,
by the files in which it is defined, whose first sentence says what they are for. The lines within
name the files that come first. What is added to a room is on its page without anybody's doing.

A method stands where it is defined. A class names what it has from another public class in one
line, and a link to ``GaussianSmoother.certify`` leads there.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache
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


@cache
def public(kind_: type) -> str | None:
    """The full name under which a room makes a class public."""
    top, _, rest = kind_.__module__.partition(".")
    if top != "rsfl" or not rest:
        return None
    room = importlib.import_module(f"rsfl.{rest.partition('.')[0]}")
    named = kind_.__name__ in getattr(room, "__all__", ())
    same = named and getattr(room, kind_.__name__) is kind_
    return f"{room.__name__}.{kind_.__name__}" if same else None


@cache
def members(kind_: type) -> list[str]:
    """The methods and properties that a public class shows as its own: also those of its private
    bases."""
    shown = [base for base in kind_.__mro__[1:] if public(base)]
    others = {one for base in shown for one in base.__mro__}
    own = [base for base in kind_.__mro__ if base not in others and _of_rsfl(base)]
    found = {
        name: None
        for base in own
        for name, value in vars(base).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, property))
    }
    return list(found)


def _of_rsfl(kind_: type) -> bool:
    return kind_.__module__.partition(".")[0] == "rsfl"


@cache
def inherited(kind_: type) -> dict[str, list[str]]:
    """By public class from which it has them, the names of what a class does not define anew."""
    seen, found = set(members(kind_)), {}
    for base in kind_.__mro__[1:]:
        home = public(base)
        if home and (names := [name for name in members(base) if name not in seen]):
            found[home] = names
            seen.update(names)
    return found


def also(kind_: type) -> list[str]:
    """The line that says so."""
    parts = []
    for home, names in inherited(kind_).items():
        links = ", ".join(f":py:obj:`{name} <{home}.{name}>`" for name in names)
        parts.append(f"{links} of :py:obj:`{home.rpartition('.')[2]} <{home}>`")
    return [f"   Also has {'; '.join(parts)}.", ""] if parts else []


def elsewhere(kind_: type) -> str:
    """The classes whose members are not repeated: of other packages, and the public bases."""
    bases = [base for base in kind_.__mro__[1:] if public(base)]
    ours = {one.__name__ for base in bases for one in base.__mro__}
    return ", ".join(
        sorted({"object", "tuple", "Mapping", "Sequence", "Module"} | ours)
    )


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
            words = value.__doc__ if kind(value) != "data" else None
            doc = sentence(words or "\n".join(noted(room, label)))
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
                body += ["   :members:", f"   :inherited-members: {elsewhere(value)}"]
                body += ["", *also(value)]
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
    everything = [
        (name, kind_, name)
        for name, _, kind_, *_ in env.domains.python_domain.get_objects()
    ]
    everything += [(name, "method", home) for name, home in moved(env).items()]
    for name, kind_, home in everything:
        parts = name.split(".")
        if parts[0] != "rsfl" or len(parts) < 2:
            continue
        found[name] = home
        if len(parts) > 2:
            found[".".join(parts[1:])] = home
            bare = parts[-1]
            if len(parts) == 3 and (re.match(r"[A-Z]\w*[a-z]", bare) or "_" in bare):
                short.setdefault(bare, set()).add(name)
            if len(parts) == 4 and parts[2][0].isupper():
                found[".".join(parts[2:])] = home
                if (
                    kind_ == "method" and "_" in bare[1:] and name == home
                ):  # of the class with the shortest name
                    methods[bare] = min(
                        methods.get(bare, name), name, key=lambda n: (len(n), n)
                    )
    return (
        methods
        | found
        | {bare: min(names) for bare, names in short.items() if len(names) == 1}
    )


def moved(env: Any) -> dict[str, str]:
    """Where a name stands that a class has from another one, by the name under that class."""
    found = {}
    for name, _, kind_, *_ in env.domains.python_domain.get_objects():
        room, _, bare = name.rpartition(".")
        if kind_ == "class" and room.startswith("rsfl.") and room.count(".") == 1:
            for home, names in inherited(
                getattr(importlib.import_module(room), bare)
            ).items():
                found |= {f"{name}.{one}": f"{home}.{one}" for one in names}
    return found


def resolve(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """A link to what a class has from another one."""
    if node.get("refdomain") != "py":
        return None
    home = moved(env).get(node["reftarget"])
    domain, page_ = env.domains.python_domain, node["refdoc"]
    return home and domain.resolve_xref(
        env, page_, app.builder, "obj", home, node, content
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    app.connect("missing-reference", resolve)
    app.add_post_transform(Links)
    return {"parallel_read_safe": True}
