"""A public name without a documentation page, or without a docstring, fails the build."""

import importlib
import inspect
import pkgutil

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import rsfl

logger = logging.getLogger(__name__)


def public_modules() -> list[str]:
    """The rooms of the library: the direct submodules whose name has no underscore."""
    return [
        f"rsfl.{m.name}"
        for m in pkgutil.iter_modules(rsfl.__path__)
        if not m.name.startswith("_")
    ]


def _has_words(value: object) -> bool:
    """Whether it is a class or a function; an alias of a type has no docstring of its own."""
    return inspect.isroutine(value) or isinstance(value, type)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    documented = {name for name, *_ in env.domains.python_domain.get_objects()}
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        if module_name not in documented:
            logger.warning("public module %s has no page under docs/api", module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if f"{module_name}.{name}" not in documented:
                logger.warning("public name %s.%s is not documented", module_name, name)
            elif _has_words(value) and not (value.__doc__ or "").strip():
                logger.warning("public name %s.%s has no docstring", module_name, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
