"""Annotations of `probe` checked at run time, in tests only: users pay nothing for it.

    annotation_checks.install("probe")  # before anything imports it

Each function of a module or of a class checks what it is called with and what it returns: shapes
by jaxtyping where its annotations have any, all other types by beartype. jaxtyping's own import
hook does the same to functions inside functions too, anew at every definition, and binds the
arguments of every call: that was more than half of the time of all tests.
"""

import ast
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
import typing
from collections.abc import Callable
from types import CodeType, ModuleType

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

CHECKED = "_annotation_checks"  # the name under which a module finds the decorators
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # 0 is a float


def has_shape(hint: object) -> bool:
    """Whether a type, or a part of it, is an array of a given shape.

    >>> has_shape(tuple[jaxtyping.Float[object, "row"], ...]), has_shape(tuple[int, ...])
    (True, False)
    """
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in typing.get_args(hint))


def checked(function: Callable) -> Callable:
    """The function with its annotations checked at every call."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that only the type checker knows: jaxtyping leaves that one out
        return jaxtyped(function, typechecker=check_types)
    if any(has_shape(hint) for hint in hints.values()):
        return jaxtyped(function, typechecker=check_types)
    typed = check_types(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        return typed(*args, **kwargs)

    return call


def checked_class(cls: type) -> type:
    """A dataclass with the types of its fields checked when one is made; other classes as is."""
    return jaxtyped(cls, typechecker=check_types)


class Decorate(ast.NodeTransformer):
    """Puts `checked` on the functions of a module and of its classes, `checked_class` on these."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        module = ast.parse(f"import annotation_checks as {CHECKED}").body
        after = next(
            index
            for index, child in enumerate([*node.body, ast.Pass()])
            if not (isinstance(child, ast.Expr) or getattr(child, "module", "") == "__future__")
        )
        self.generic_visit(node)
        node.body[after:after] = module
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, self._decorator("checked_class", node))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Its body is left as it is. Innermost, so that it sees the function and no wrapper."""
        node.decorator_list.append(self._decorator("checked", node))
        return node

    def _decorator(self, name: str, node: ast.stmt) -> ast.expr:
        decorator = ast.parse(f"{CHECKED}.{name}", mode="eval").body
        for part in ast.walk(decorator):
            ast.copy_location(part, node)
        return decorator


class CheckedLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its functions decorated; no file is written, for users' caches."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = Decorate().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class CheckedFinder(importlib.abc.MetaPathFinder):
    """Finds a package's modules where they always are and gives them the checking loader."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """From here on the package's modules are checked; those imported before are not."""
    sys.meta_path.insert(0, CheckedFinder(package))
