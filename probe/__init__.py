"""See, layer by layer, how LLaVA-family models attend to instruction, vision and response tokens.

>>> import probe
>>> subject = probe.load("tiny-llava")                        # doctest: +SKIP
>>> record = probe.measure(subject, "photo.jpg", "what is this ?")  # doctest: +SKIP
>>> record["llm"]["mass"]                                     # doctest: +SKIP

`__init__.pyi` maps each public name to its module, which is imported when the name is first used.
"""

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_MODULE_OF = {  # None: a subpackage
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
__all__ = [name for name in _MODULE_OF if name not in ("models", "reducers")]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'probe' has no attribute {name!r}")
    module = _MODULE_OF[name]
    return getattr(import_module(module), name) if module else import_module(f"probe.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
