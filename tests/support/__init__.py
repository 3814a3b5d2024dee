"""Shared pieces of the tests: stored outputs of official implementations and problems with known solutions."""
