from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

# a JavaScript object has the attributes that it has
JsProxy = Any
JsNull: type
jsnull: Any

class JsException(Exception):
    name: str
    message: str
    stack: str
    def __getattr__(self, name: str) -> Any: ...

class ConversionError(Exception): ...
class InternalError(Exception): ...

def can_run_sync() -> bool: ...
def run_sync(awaitable: Awaitable[T], /) -> T: ...
def create_proxy(value: Any, /, *, capture_this: bool = False, roundtrip: bool = True) -> Any: ...
def create_once_callable(callable: Callable[..., Any], /) -> Any: ...
def destroy_proxies(proxies: Any, /) -> None: ...
def to_js(
    value: Any,
    /,
    *,
    depth: int = -1,
    pyproxies: Any = None,
    create_pyproxies: bool = True,
    dict_converter: Callable[[Any], Any] | None = None,
    default_converter: Callable[[Any, Any, Any], Any] | None = None,
) -> Any: ...
