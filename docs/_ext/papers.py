"""Every paper has a URL: the page `papers` lists them, and where a title or a short name of one
stands in a text, it is a link. A reference to a paper that the page does not have fails the build.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "papers.md"
ENTRY = re.compile(
    r"^- .*\[(?P<title>[^]]+)\]\((?P<url>\S+)\)[^*\n]*(?:\*(?P<short>[^*]+)\*)?$", re.M
)
QUOTED = re.compile('[\u201c"]([A-Z][^\u201d"]{12,})[\u201d"]')


@cache
def papers() -> dict[str, str]:
    """URLs by title and by short name, in lower case."""
    found = {}
    for entry in ENTRY.finditer(PAGE.read_text()):
        for words in filter(None, (entry["title"], entry["short"])):
            found[words.lower()] = entry["url"]
    return found


@cache
def pattern() -> re.Pattern[str]:
    longest = sorted(papers(), key=len, reverse=True)
    words = "|".join(r"\s+".join(map(re.escape, name.split())) for name in longest)
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


class Papers(SphinxPostTransform):
    """Titles and short names become links: once in each paragraph."""

    default_priority = 910
    closed = (
        nodes.reference
        | nodes.literal
        | nodes.title
        | nodes.literal_block
        | addnodes.desc_signature
    )

    def run(self, **kwargs: Any) -> None:
        if self.env.docname == "papers":
            return
        for block in list(
            self.document.findall(lambda n: isinstance(n, nodes.TextElement))
        ):
            if isinstance(block, self.closed):
                continue
            linked: set[str] = set()
            for text in [
                child for child in block.children if isinstance(child, nodes.Text)
            ]:
                self.link(block, text, linked)
        for rubric in self.document.findall(nodes.rubric):
            if rubric.astext() == "References":
                self.check(rubric)

    def link(
        self, block: nodes.TextElement, text: nodes.Text, linked: set[str]
    ) -> None:
        parts: list[nodes.Node] = []
        end = 0
        for found in pattern().finditer(text):
            url = papers()[" ".join(found[0].lower().split())]
            if url in linked:
                continue
            linked.add(url)
            parts += [nodes.Text(text[end : found.start()])]
            parts += [nodes.reference("", found[0], refuri=url, internal=False)]
            end = found.end()
        if parts:
            block.replace(text, [*parts, nodes.Text(text[end:])])

    def check(self, rubric: nodes.rubric) -> None:
        """Each title within quotes in a list of references is one that the page has."""
        after = rubric.next_node(nodes.paragraph, descend=False, siblings=True)
        for title in QUOTED.findall(after.astext() if after else ""):
            known = any(re.fullmatch(pattern(), part.strip(" ,.")) for part in [title])
            if not known and "documentation" not in after.astext():
                logger.warning(
                    "no paper %r on the page of papers", title, location=rubric
                )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(Papers)
    return {"parallel_read_safe": True}
