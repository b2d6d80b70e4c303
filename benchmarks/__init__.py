"""How fast chest is beside its rivals and beside what the machine allows.

Run ``python -m benchmarks --help``. Nothing of the package imports this.
"""
