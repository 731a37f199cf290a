"""Policies: prts (the method), bc (the baseline), reference (replay, random, zero)."""
