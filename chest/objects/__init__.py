"""A chest in a store of objects: S3, GCS, Azure, a folder, memory.

Owns: nothing itself; `mapping` is what users see, `atomic` what is exact between
processes, `engine` the way of values, `sealing` the bytes of an object, `naming` its name.
"""
