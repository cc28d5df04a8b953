"""Version keys, compiled. The orders are in docs/versions.md; the oracle in tests/oracle.py."""

def version_key(scheme: str, text: str) -> bytes | None:
    """The text's key in `scheme` ("auto", "semver", "pep440", "debian"); bytes order is version order. None: not a version there.

    Never raises on any text; an unknown scheme raises ValueError.
    """

__pyx_capi__: dict[str, object]  # Cython's own: how compiled modules find each other's functions
