"""Adapters to the outside. Each imports its own library; nothing here is imported by the rest at module level."""
