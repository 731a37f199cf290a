"""Reference policies: replay, random, zero."""
