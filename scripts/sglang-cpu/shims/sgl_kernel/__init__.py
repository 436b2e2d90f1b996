"""Shim: sgl-kernel's CPU build is not on the package index. Without AMX, sglang's CPU path
runs on torch; these names are imported by modules but used by speculative
decoding only, so they raise when called."""

__version__ = "0.0.0+shim"


def __getattr__(n):
    if n.startswith("__"):
        raise AttributeError(n)

    def f(*a, **k):
        raise NotImplementedError("sgl_kernel shim: " + n)

    f.__name__ = n
    return f
