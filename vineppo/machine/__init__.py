"""What lies between the program and the machine it runs on; nothing here knows of models or learning.

limits: cores and memory that may be used. threads: how many compute, and how they wait. runtime: device, precision,
allocator, and the record of them. files, tensor_files: written whole, read with suspicion.
terminal, tables: text that is shown.
"""
