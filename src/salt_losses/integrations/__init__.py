"""Salt in frameworks that let a config name a class: subclasses, one module for each framework.

Importing this imports none of the frameworks; `docs/frameworks.md` says which versions of them the
subclasses were run with.
"""
