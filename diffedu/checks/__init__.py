"""Checks of the exercises: one module a chapter, one mechanism for all of them."""
