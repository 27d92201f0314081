"""A run's folder and what a recipe becomes in it.

recipe: the TOML file, checked. session: one run from its folder's lock to its result. run_folder, checkpoint, metrics,
lock: what lies in the folder. changes: what --resume may change. estimate: what cannot fit. progress, shutdown: the
terminal and Ctrl-C.
"""
