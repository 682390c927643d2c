"""How SQLAlchemy's test suite makes its databases on this dialect: as on its own SQLite dialects.

The schema `test_schema` is a file that is attached; here it is a file in memory.
"""

from sqlalchemy.dialects.sqlite import provision

__all__ = ["provision"]
