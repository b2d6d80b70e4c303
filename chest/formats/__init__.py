"""What turns values into bytes and back, one module for each format.

Owns: nothing; see `pickle5`, `data`, `custom` and their neighbours.
"""
