# The global scope of JavaScript: whatever the page, the worker or Node has.
from typing import Any

def __getattr__(name: str) -> Any: ...
