"""Estimators against the truth. world: a language where all is enumerated. measure: bias and variance in it."""
