"""What may enter the catalogue, and what a change must not contradict: a module for each resource.

Pure. An `admit_*` or `remove_*` function looks at the newest snapshot and returns the changes to write, or raises
InputError, NotFound or ConflictError.
"""
