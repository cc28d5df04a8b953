"""Version keys, compiled. The orders are in docs/versions.md; the oracle in tests/oracle.py."""

def version_key(scheme: str, text: str) -> bytes | None:
    """The text's key in `scheme` ("auto", "semver", "pep440", "debian"); None: not a version there.

    The order of the bytes is the order of the versions. Never raises on any text; an unknown scheme raises ValueError.
    """

__pyx_capi__: dict[str, object]  # Cython's own: how compiled modules find each other's functions
