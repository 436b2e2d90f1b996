class ImageReadMode:
    RGB = "RGB"


def __getattr__(n):
    if n.startswith("__"):
        raise AttributeError(n)

    def f(*a, **k):
        raise NotImplementedError("torchvision shim: " + n)

    return f
