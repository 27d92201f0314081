"""Engines sample continuations. ENGINES maps the recipe's `engine.name` to a class with a `Config`."""
