"""HEIC, as phones write pictures: told from its neighbours, read where `pillow-heif` is there."""

from PIL.ImageFile import ImageFile

from vision_add_ons.errors import ImageError

_HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AV1 = {b"avif", b"avis"}


def is_heic(encoded: bytes) -> bool:
    """Whether a file says that it is HEIC, by the brands at its start.

    One whose main brand is HEIF's own may be AVIF as well; then the brands behind it tell.
    """
    if encoded[4:8] != b"ftyp":
        return False
    main, end = encoded[8:12], min(int.from_bytes(encoded[:4], "big"), 1024)
    others = {encoded[i : i + 4] for i in range(16, end, 4)}
    general = main in (b"mif1", b"msf1") and not others & _AV1
    return main in _HEVC or (general and bool(others & _HEVC))


def heic_reader(name: str) -> type[ImageFile]:
    """What reads HEIC, of the extra `heic`. Raises `ImageError` where that is not installed.

    It is asked for by us alone: nothing is registered with Pillow.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC picture: pip install 'sightline[heic]' to have such read, or "
            "convert it to JPEG or PNG"
        ) from error
    reader: type[ImageFile] = HeifImageFile
    return reader
