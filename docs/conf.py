"""Sphinx configuration: warnings are errors, tutorials are executed, every public name is
documented."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# The networks of the pages are so small that threads would wait more than work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rsfl import __version__

project = "rsfl"
author = "The rsfl authors"
copyright = "2026, The rsfl authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "papers",
    "public_names",
    "rooms",
    "sources",
    "typed",
    "widths",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True  # what is printed is one block
nb_render_markdown_format = "myst"  # the default knows no tables
autodoc_member_order = "bysource"
autodoc_mock_imports = ["flwr"]  # an extra that the documentation is built without
autodoc_typehints = "none"  # they stand beside the arguments, as written: `typed`
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are a list, as arguments are
napoleon_use_rtype = False
napoleon_attr_annotations = False  # `typed` adds them, as written
nitpicky = False
default_role = "py:obj"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"rsfl {__version__}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["rsfl.css"]
html_theme_options = {  # colours of the drawings, from the palette of the plots
    "light_css_variables": {"rsfl-safe": "#0072B2", "rsfl-threat": "#D55E00"},
    "dark_css_variables": {"rsfl-safe": "#56B4E9", "rsfl-threat": "#E69F00"},
}
copybutton_exclude = ".linenos, .gp, .go"
