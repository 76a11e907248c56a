"""Types stand beside the arguments that they are types of, as they are written in the source, and
names of Python, NumPy and PyTorch lead to their documentation.

Where that is follows from a name by the rules of those sites, so the build asks nobody for a list.
"""

import ast
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from rooms import public
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform

import rsfl

FIELD = re.compile(
    r"^:(?P<kind>param|ivar|returns)(?: \\?\*{0,2}(?P<name>\w+))?:(?= |$)"
)
ALIAS = re.compile(
    r"^([A-Z]\w+)(?:: TypeAlias)? = ((?:[a-zA-Z]+ \||[a-zA-Z.]+\[).*)$", re.M
)
TYPE_FIELD = {
    "param": ":type {name}: ",
    "ivar": ":vartype {name}: ",
    "returns": ":rtype: ",
}
SPELT = {  # what a reader is told in place of a private name
    "Floats": "float | ndarray",
    "Float64": "ndarray",
    "Int64": "ndarray",
    "Bools": "ndarray",
    "Bool": "ndarray",
    "Real": "float",
    "Number": "float",
}

PYTHON = "https://docs.python.org/3/library/"
NUMPY = "https://numpy.org/doc/stable/reference/"
TORCH = "https://docs.pytorch.org/docs/stable/"
PLACES = {
    **{name: f"{PYTHON}functions.html#{name}" for name in ("int", "float", "bool")},
    **{
        name: f"{PYTHON}stdtypes.html#{name}"
        for name in ("str", "bytes", "tuple", "list", "dict", "set", "frozenset")
    },
    "None": f"{PYTHON}constants.html#None",
    **{
        name: f"{PYTHON}collections.abc.html#collections.abc.{name}"
        for name in (
            "Callable",
            "Collection",
            "Iterable",
            "Iterator",
            "Mapping",
            "Sequence",
        )
    },
    "Path": f"{PYTHON}pathlib.html#pathlib.Path",
    "Fraction": f"{PYTHON}fractions.html#fractions.Fraction",
    **dict.fromkeys(("os.PathLike", "PathLike"), f"{PYTHON}os.html#os.PathLike"),
    "ArrayLike": f"{NUMPY}typing.html#numpy.typing.ArrayLike",
    "ndarray": f"{NUMPY}generated/numpy.ndarray.html",
    "Tensor": f"{TORCH}tensors.html#torch.Tensor",
    "torch.Tensor": f"{TORCH}tensors.html#torch.Tensor",
    "torch.dtype": f"{TORCH}tensor_attributes.html#torch.dtype",
    "torch.device": f"{TORCH}tensor_attributes.html#torch.device",
    "torch.Generator": f"{TORCH}generated/torch.Generator.html",
    "Optimizer": f"{TORCH}optim.html#torch.optim.Optimizer",
    "LRScheduler": f"{TORCH}generated/torch.optim.lr_scheduler.LRScheduler.html",
    "Dataset": f"{TORCH}data.html#torch.utils.data.Dataset",
    "Axes": "https://matplotlib.org/stable/api/_as_gen/matplotlib.axes.Axes.html",
}
LAYER = re.compile(r"(?:torch\.)?(nn\.[A-Z]\w+)")


def place(name: str) -> str | None:
    """Where another package documents a name."""
    layer = LAYER.fullmatch(name)
    return f"{TORCH}generated/torch.{layer[1]}.html" if layer else PLACES.get(name)


def annotations(value: Any) -> dict[str, str]:
    """Of a function or a class: what its arguments and fields are, and ``return``, as written."""
    found: dict[str, str] = {}
    if isinstance(value, type):
        for base in reversed(value.__mro__[:-1]):
            if base.__module__.partition(".")[0] != "rsfl":
                continue
            analyzer = ModuleAnalyzer.for_module(base.__module__)
            analyzer.analyze()
            written = analyzer.annotations
            own = {
                name: text
                for (kind, name), text in written.items()
                if kind == base.__qualname__
            }
            found |= own
            if "__init__" in vars(base):
                found |= annotations(vars(base)["__init__"])
        found.pop("return", None)
        return found
    value = value.fget if isinstance(value, property) else value
    value = inspect.unwrap(getattr(value, "__func__", value))
    try:
        (written,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    if isinstance(written, ast.FunctionDef):
        arguments = written.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += filter(None, (arguments.vararg, arguments.kwarg))
        found = {
            one.arg: ast.unparse(one.annotation) for one in every if one.annotation
        }
        if written.returns:
            found["return"] = ast.unparse(written.returns)
    return found


@cache
def aliases() -> dict[str, str]:
    """What the package's own short names for types stand for."""
    source = Path(rsfl.__file__).parent
    lines = "\n".join(path.read_text() for path in sorted(source.rglob("*.py")))
    return dict(ALIAS.findall(lines.replace('"', "'")))


def spelt(text: str, home: ModuleType) -> str:
    """An annotation as it is shown: classes of ours under their full names, of which the last part
    is read, and short names as what they stand for."""
    text = re.sub(
        "[\"']([A-Z]\\w+)[\"']", r"\1", text
    )  # a name in quotes, not a literal
    text = re.sub(r"^(?:ClassVar|Final)\[(.*)\]$", r"\1", text)

    def shown(found: re.Match[str]) -> str:
        name = found[0]
        value = getattr(home, name, None)
        if isinstance(value, type) and (full := public(value)):
            return f"~{full}"
        if name in SPELT:
            return SPELT[name]
        known = not isinstance(value, type) and aliases().get(name)
        return spelt(known, home) if known else name

    text = re.sub(r"(?<![\w.~])[A-Z_]\w+(?![\w.])", shown, text)
    return re.sub(r"Literal\[([^]]*)\]", lambda m: m[1].replace(", ", " | "), text)


def add(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """A field of the type before each field of an argument."""
    fields = [
        (at, found) for at, line in enumerate(lines) if (found := FIELD.match(line))
    ]
    if not fields or isinstance(value, property):
        return
    known, home = annotations(value), inspect.getmodule(value)
    for at, found in reversed(fields):
        written = known.get(found["name"] or "return", "")
        if written and (text := spelt(written, home)) not in ("", "None"):
            lines.insert(
                at, TYPE_FIELD[found["kind"]].format(name=found["name"]) + text
            )


def resolve(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """A link to another package's name."""
    url = place(node["reftarget"]) if node.get("refdomain") == "py" else None
    return url and nodes.reference("", "", content, refuri=url, internal=False)


class Layers(SphinxPostTransform):
    """A name of PyTorch in a text is a link, as names of ours are."""

    default_priority = 6

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.literal)):
            url = place(node.astext()) if "." in node.astext() else None
            if url and not isinstance(node.parent, nodes.reference | nodes.title):
                node.replace_self(nodes.reference("", "", node.deepcopy(), refuri=url))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", add, priority=600)  # after napoleon
    app.add_post_transform(Layers)
    app.connect("missing-reference", resolve, priority=600)  # after our own names
    return {"parallel_read_safe": True}
