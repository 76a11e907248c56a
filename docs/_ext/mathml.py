"""Formulas as MathML, made when the site is built: it takes no script and no network to read them.

The browser sets MathML itself, and needs a font with mathematical metrics for it. STIX Two Math
travels with the site, cut down to the characters that its formulas use. It stands in the stylesheet
itself, since a page that is read from a disk may not load a font from the folder beside it.
"""

import base64
import html
import io
import re
from functools import cache
from importlib.metadata import distribution
from logging import getLogger
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.locale import _
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

TAG = re.compile(r"\s*\\tag\{([^}]*)\}")  # a number that the text gives a formula

STYLE = """\
@font-face {{
  font-family: "rsfl formulas"; font-display: block;
  src: url("data:font/woff;base64,{font}") format("woff");
}}
math {{ font-family: "rsfl formulas", math; font-size: 1.08em; }}
"""


@cache
def converted(tex: str, display: bool) -> str:
    """The formula as an element, with its TeX as a text for whoever listens."""
    found: str = converter().convert_with_local_state(tex, displaystyle=display)
    return found.replace("<math", f'<math alttext="{html.escape(tex)}"', 1)


@cache
def converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False)


def formula(node: nodes.math | nodes.math_block, display: bool) -> str:
    tex = TAG.sub("", " ".join(node.astext().split()))
    try:
        return converted(tex, display)
    except LatexError as error:
        logger.warning("%s is no formula: %s", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


class Whole(SphinxPostTransform):
    """A comma stays with the formula before it: a browser would break the line between them."""

    default_priority = 900

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(nodes.math)):
            after = node.next_node(descend=False, siblings=True)
            found = (
                re.match(r"[.,;:?!)\]\-\u2013\u2019]+\w*", after)
                if isinstance(after, nodes.Text)
                else None
            )
            if found:
                whole = nodes.inline(
                    "", "", node.deepcopy(), nodes.Text(found[0]), classes=["whole"]
                )
                after.parent.replace(after, nodes.Text(after[found.end() :]))
                node.replace_self(whole)


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(formula(node, display=False))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="formula"))
    tag = TAG.search(node.astext())
    if tag:
        self.body.append(f'<span class="eqno">({tag[1]})</span>')
    elif node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(formula(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def characters(env: BuildEnvironment) -> set[str]:
    """What the formulas of all pages are set in."""
    found = set(map(chr, range(0x20, 0x7F)))
    for page in sorted(env.found_docs):
        for node in env.get_doctree(page).findall(
            lambda one: isinstance(one, nodes.math | nodes.math_block)
        ):
            found |= set(
                html.unescape(re.sub("<[^>]+>", "", formula(node, display=True)))
            )
    # A letter by itself is set as an italic one, of which the markup says nothing.
    italics = zip(
        "hABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgijklmnopqrstuvwxyz", ITALIC, strict=True
    )
    found |= {slanted for letter, slanted in italics if letter in found}
    return found | set(map(chr, range(0x1D6E2, 0x1D71C)))  # the Greek ones


ITALIC = "\u210e" + "".join(chr(0x1D434 + n) for n in range(52) if n != 33)


def write_style(app: Sphinx, env: BuildEnvironment) -> None:
    """The stylesheet with the font in it."""
    package = Path(distribution("ziamath").locate_file("ziamath"))
    font = TTFont(package / "fonts" / "STIXTwoMath-Regular.ttf", recalcTimestamp=False)
    getLogger("fontTools").setLevel("WARNING")  # it lists every glyph
    # Of the features, those that give primes and scripts their shapes.
    cutter = subset.Subsetter(subset.Options(layout_features=["ssty", "dtls", "rtlm"]))
    cutter.populate(text="".join(sorted(characters(env))))
    cutter.subset(font)
    font.flavor = "woff"
    packed = io.BytesIO()
    font.save(packed)
    folder = app.outdir / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    encoded = base64.b64encode(packed.getvalue()).decode()
    (folder / "formulas.css").write_text(STYLE.format(font=encoded))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Whole)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("env-updated", write_style)
    app.add_css_file("formulas.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
