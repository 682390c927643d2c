# What of Pyodide 314 is used here; it is published without types that a checker could find.
__version__: str
