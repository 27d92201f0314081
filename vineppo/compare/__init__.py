"""Methods side by side. jobs: runs what is missing. finished_runs: reads what is there.
comparison, tables: set it side by side.
"""
