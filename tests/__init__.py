"""The tests; a package, so that kits can be imported from ``tests.…``."""
