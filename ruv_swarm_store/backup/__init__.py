"""Backups of a live store: full ones and increments, each checked and restorable, in any storage."""
