"""Writes `ruv_swarm_store/aio/__init__.pyi`: what editors and type checkers know of the store for coroutines.

The classes there are made when the package is imported; here their signatures are made of the same classes, by the same recipes.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ruv_swarm_store import aio
from ruv_swarm_store.aio.deriving import Derived, Form
from ruv_swarm_store.store import Store

STUB = Path(aio.__file__).with_suffix(".pyi")
HEAD = '''"""Written by tests/programs/aio_stub.py, from the classes that block and the recipes for these: do not edit."""'''
ORDER = (
    *(f"Async{name}" for name in ("Query", "Repository", "Agents", "Tasks", "Messages", "Metrics", "Groups", "Config", "Events")),
    *(f"Async{name}" for name in ("CachedRepository", "CachedConfig")),
    *(f"Async{name}" for name in ("Subscription", "ConsumerGroup", "Projector", "Buffer", "Journal")),
    *(f"Async{name}" for name in ("Backups", "Schedule", "Shipping", "PerformanceMonitor", "Store")),
)
OPENING = '''
class Opening:
    """A store that is being opened: await it, or let `async with` open it and close it in the end."""

    def __await__(self) -> Generator[Any, None, AsyncStore]: ...
    async def __aenter__(self) -> AsyncStore: ...
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...
'''
ALWAYS = {  # what the text above and below takes
    "Any": "typing",
    "Callable": "collections.abc",
    "Generator": "collections.abc",
    "AsyncIterator": "collections.abc",
    "Generic": "typing",
    "Self": "typing",
    "Struct": "msgspec",
    "TracebackType": "types",
    "TypeVar": "typing",
}


@cache
def names_in(module: ModuleType) -> dict[str, tuple[str, str]]:
    """Where each name of a module comes from, those for type checkers only included."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.ImportFrom(module=str(source), names=names):
                found |= {name.asname or name.name: (source, name.name) for name in names}
            case ast.Import(names=names):
                found |= {name.name: ("", name.name) for name in names}
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = (module.__name__, name)
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = (module.__name__, name)
    return found


def defined_in(source: str, name: str) -> tuple[str, str]:
    """Where a name was defined that a package hands on."""
    while source.startswith("ruv_swarm_store") and (further := names_in(import_module(source)).get(name, (source, name))) != (source, name):
        source, name = further
    return source, name


class Stub:
    """The text of the stub, as it comes to be."""

    def __init__(self) -> None:
        self.imports: dict[str, tuple[str, str]] = {name: (module, name) for name, module in ALWAYS.items()}
        self.derived = {(kind.recipe.of.__module__, kind.recipe.of.__name__): name for name in ORDER for kind in [getattr(aio, name)]}

    def text(self) -> str:
        classes = "\n".join(self.class_(name, getattr(aio, name)) for name in ORDER)
        lines: dict[str, set[str]] = {}
        for alias, (module, name) in self.imports.items():
            lines.setdefault(module, set()).add(name if alias == name else f"{name} as {alias}")
        modules = "".join(f"import {name}\n" for name in sorted(lines.pop("", ())))
        imports = modules + "\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(lines.items()))
        variables = "\n".join(['E = TypeVar("E", bound=Struct)', 'S = TypeVar("S")', 'T = TypeVar("T")'])
        names = ", ".join(f'"{name}"' for name in sorted(aio.__all__))
        return f"{HEAD}\n\n{imports}\n\n__all__ = [{names}]\n\n{variables}\n\n{classes}\n{OPENING}"

    def class_(self, name: str, kind: Any) -> str:
        recipe = kind.recipe
        of, parent = recipe.of, kind.__mro__[1]
        if name == "AsyncStore":
            parent = Derived
        if parent is not Derived:
            bound = ast.unparse(ast.parse(str(of.__orig_bases__[0].__args__[0].__name__), mode="eval"))
            base = f"({parent.__name__}[{self.annotation(bound, inspect.getmodule(of))}])"
        else:
            base = "(Generic[E])" if getattr(of, "__parameters__", ()) else ""
        lines = [f"class {name}{base}:", indented(docstring(kind.__doc__)), ""]
        members = list(recipe.members(None if parent is Derived else parent))
        lines += [indented(self.member(recipe, attribute, member, form)) for attribute, member, form in members]
        if name == "AsyncStore":
            lines += [indented(part) for part in self.opening_and_closing(kind)]
        elif hasattr(kind, "__aenter__") and not hasattr(parent, "__aenter__"):
            lines.append("    async def __aenter__(self) -> Self: ...")
            lines.append(
                "    async def __aexit__(\n        self, kind: type[BaseException] | None, error: BaseException | None, "
                "traceback: TracebackType | None\n    ) -> None: ..."
            )
        if "__aiter__" in vars(kind):
            lines.append("    def __aiter__(self) -> AsyncIterator[E]: ...")
        return "\n".join(lines) + "\n"

    def opening_and_closing(self, kind: Any) -> Iterator[str]:
        parameters, _ = self.signature(inspect.unwrap(vars(Store)["open"].__func__))
        yield f"@classmethod\ndef open({parameters}) -> Opening:\n{indented(docstring(Store.open.__doc__))}"
        yield f"async def close(self) -> None:\n{indented(docstring(kind.close.__doc__))}"
        yield "async def __aenter__(self) -> Self: ..."
        yield (
            "async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, "
            "traceback: TracebackType | None) -> None: ..."
        )

    def member(self, recipe: Any, name: str, member: Any, form: Form) -> str:
        if member is None:
            return f"@property\ndef {name}(self) -> {self.annotation(recipe.holds[name], module_of(recipe.of), wrap=True)}: ..."
        if form in (Form.HOLD, Form.ASK):
            getter = member.fget if isinstance(member, property) else member.func
            _, returns = self.signature(getter)
            head = f"@property\ndef {name}(self)" if form is Form.HOLD else f"async def {name}(self)"
            return f"{head} -> {returns}:\n{indented(docstring(getter.__doc__))}"
        function = inspect.unwrap(member)
        parameters, returns = self.signature(function)
        documentation = inspect.getdoc(function) or ""
        if form in (Form.WALK, Form.FOLLOW):
            return f"def {name}({parameters}) -> AsyncIterator[{returns}]:\n{indented(docstring(documentation))}"
        if form is Form.BLOCK:
            tuples = returns.startswith("tuple[")
            taken = returns.removeprefix("tuple[").removesuffix("]") if tuples else returns
            rest = parameters.removeprefix("self").removeprefix(", ")
            parameters = f"self, function: Callable[[{taken}], T]" + (f", {rest}" if rest else "")
            documentation += (
                f"\n\nThe block is a function here: it is called with {'them' if tuples else 'it'} in a thread, and its value returned."
            )
            return f"async def {name}({parameters}) -> T:\n{indented(docstring(documentation))}"
        if form is Form.WAIT and (more := inspect.getdoc(getattr(recipe.of, f"{name}_async"))):
            documentation += f"\n\n{more}"
        if form is Form.PLAIN and inspect.isgeneratorfunction(function) and not inspect.isgeneratorfunction(member):  # by `contextmanager`
            returns = f"{self.imported('AbstractContextManager', ('contextlib', 'AbstractContextManager'))}[{returns}]"
        head = "def" if form is Form.PLAIN else "async def"
        return f"{head} {name}({parameters}) -> {returns}:\n{indented(docstring(documentation))}"

    def signature(self, function: Any) -> tuple[str, str]:
        """A function's parameters and what it returns, iterates over, or gives to its block."""
        module = inspect.getmodule(function)
        signature, parts, stars = inspect.signature(function), [], False
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and not stars:
                parts.append("*")
                stars = True
            part = f"*{parameter.name}" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name
            stars = stars or part.startswith("*")
            if parameter.annotation is not parameter.empty:
                part += f": {self.annotation(parameter.annotation, module)}"
            if parameter.default is not parameter.empty:
                part += f"{' = ' if ':' in part else '='}{literal(parameter.default)}"
            parts.append(part)
        returns: str = signature.return_annotation
        for giving in ("Iterator[", "AbstractContextManager["):
            if returns.startswith(giving):
                returns = returns.removeprefix(giving).removesuffix("]")
        return ", ".join(parts), self.annotation(returns, module, wrap=True)

    def annotation(self, text: str, module: ModuleType | None, *, wrap: bool = False) -> str:
        """A type as the stub names it; what has verbs to await as what it is there, if it is returned."""
        tree = ast.parse(text, mode="eval")
        known = names_in(module) if module is not None else {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier() and node.value in known:
                raise TypeError(f"{text} names {node.value} in quotes")
            if not isinstance(node, ast.Name) or node.id in ("E", "S", "T") or node.id in self.derived.values():
                continue
            origin = known.get(node.id)
            if origin is None:
                continue  # a builtin
            origin = defined_in(*origin)
            if wrap and origin in self.derived:
                node.id = self.derived[origin]
                continue
            node.id = self.imported(node.id, origin)
        return ast.unparse(tree)

    def imported(self, alias: str, origin: tuple[str, str]) -> str:
        if self.imports.setdefault(alias, origin) != origin:
            alias = f"{origin[0].rpartition('.')[2].capitalize()}{alias}"
            self.imports[alias] = origin
        return alias


def module_of(of: type) -> ModuleType | None:
    return inspect.getmodule(of)


def literal(value: Any) -> str:
    return repr(value) if value is None or type(value) in (bool, int, float, str) or value == () else "..."


def docstring(text: str | None) -> str:
    lines = inspect.cleandoc(text or "").replace("\\", "\\\\").splitlines()
    return '"""' + "\n".join(lines) + ('\n"""' if len(lines) > 1 else '"""')


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def main() -> None:
    STUB.write_text(Stub().text(), encoding="utf-8")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        sys.exit("It is written, but not formatted: there is no ruff")
    subprocess.run([ruff, "check", "--fix", "--quiet", "--select", "I001", str(STUB)], check=False)
    subprocess.run([ruff, "format", "--quiet", str(STUB)], check=True)


if __name__ == "__main__":
    main()
