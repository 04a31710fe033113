"""Whether bytes are text in UTF-8, and what they seem to be where they are not."""

import codecs

SAMPLE = 1 << 16
# Few enough that no text is taken for binary data, and compressed data always is: there a byte in
# 256 is NUL.
NULS = 1 / 400
WIDE = ("utf_32", "utf_16", "utf_32_le", "utf_32_be", "utf_16_le", "utf_16_be")
# Of the many single-byte encodings that fit a text, the usual ones.
OTHERS = ("cp1252", "cp1251", "koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\b\x1b"}) + b"\x7f"


def refuse_wide(name: str, data: bytes, begins: bool) -> None:
    """ValueError if a block of a text is rich in NULs or, its first one, begins as UTF-16."""
    nuls = data.count(0)
    if (begins and data.startswith(MARKS)) or (nuls > 1 and nuls > NULS * len(data)):
        raise ValueError(f"{name} {complaint(data)}")


def complaint(data: bytes) -> str:
    """What to say of bytes that are not UTF-8: what they seem to be, and what to do."""
    encoding = seems(data)
    if encoding is None:
        return "is not text but binary data: convert it to text in UTF-8, or leave it out"
    return f"is not valid UTF-8 and seems to be in {encoding}: convert it to UTF-8, as iconv does"


def seems(data: bytes) -> str | None:
    """The encoding that bytes which are not UTF-8 seem to be in; None for binary data."""
    from charset_normalizer import from_bytes

    wide = data.startswith(MARKS) or data.count(0) > NULS * len(data)
    # Around the first NUL, from and to multiples of four, so that wide characters stay whole.
    start = max(data.find(0) - SAMPLE // 2, 0) // 4 * 4 if wide else 0
    sample = data[start : min(start + SAMPLE, len(data) // 4 * 4 if wide else len(data))]
    best = from_bytes(sample, cp_isolation=list(WIDE if wide else OTHERS)).best()
    if best is None or not is_text(str(best).encode()):
        return None
    return best.encoding.replace("_", "-")


def is_text(data: bytes) -> bool:
    """Whether the beginning of a file is UTF-8 with few control characters."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    controls = len(data) - len(data.translate(None, CONTROLS))
    return controls * 1000 <= len(data)
