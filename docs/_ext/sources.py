"""The source of every name, for a reader without a network: a page for each module.

Drawing the tree of all pages beside a source would take longer than the source itself.
"""

from typing import Any

from sphinx.application import Sphinx


def alone(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    if page.startswith("_modules/"):
        context["toctree"] = lambda **_: ""


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("html-page-context", alone, priority=400)  # before the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
