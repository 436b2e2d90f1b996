from . import functional
from . import functional as _f


def __getattr__(n):
    return getattr(_f, n)


from .functional import InterpolationMode
