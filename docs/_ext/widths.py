"""A line of code that is wider than its column is cut or broken: it fails the build.

What cells print is wrapped where it is too wide, and docstrings are the business of the formatter.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)

WIDEST = 88  # characters, in a window of 1280 pixels


def printed(node: nodes.Node | None) -> bool:
    """Whether a block is what a cell has printed."""
    while node is not None:
        if isinstance(node, nodes.Element) and "cell_output" in node.get("classes", []):
            return True
        node = node.parent
    return False


def check(app: Sphinx, env: BuildEnvironment) -> None:
    for page in sorted(env.found_docs):
        if page.startswith("api/") or page == "changelog":
            continue
        for block in env.get_doctree(page).findall(nodes.literal_block):
            widest = max(block.astext().splitlines(), key=len, default="")
            if len(widest) > WIDEST and not printed(block):
                logger.warning(
                    "a line of code of %d characters, at most %d fit: %s",
                    len(widest),
                    WIDEST,
                    widest,
                    location=(page, block.line),
                )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
