"""The website of the task `web`: what is on sale (catalogue.py), and what its pages do (site.py)."""
