"""Tasks: problems, segment cuts and grading. TASKS maps the recipe's `task.name` to a class with a `Config`."""
