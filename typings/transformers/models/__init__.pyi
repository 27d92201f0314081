# Empty: the real one names every model.
