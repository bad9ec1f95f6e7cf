"""The CRC-32 of a long array from the CRCs of its parts, so that no host needs the whole array.

A CRC is a polynomial over GF(2) modulo the polynomial P of CRC-32. To append n bytes to a text multiplies its CRC
by x^(8n):

    crc(a + b) = crc(a) * x^(8 len(b)) mod P  xor  crc(b)

The multiplication is linear, so its results for each value of each byte of a CRC are tabulated once per length.
`crc32_combine` of zlib does the same for two CRCs; Python does not offer it.
"""

import functools

import numpy as np

REVERSED_POLYNOMIAL = 0xEDB88320  # P, with the coefficient of x^0 in the highest bit
ONE = 1 << 31  # the polynomial 1


def product(a: int, b: int) -> int:
    """Return a * b mod P for two polynomials, with the coefficient of x^0 in the highest bit."""
    total = 0
    for power in range(32):
        if a & (ONE >> power):
            total ^= b
        b = (b >> 1) ^ (REVERSED_POLYNOMIAL if b & 1 else 0)  # times x
    return total


@functools.cache
def appended_bytes(count: int) -> int:
    """Return x^(8 count) mod P, by repeated squaring."""
    result, power = ONE, ONE >> 8  # 1 and x^8
    while count:
        if count & 1:
            result = product(result, power)
        power = product(power, power)
        count >>= 1
    return result


@functools.cache
def _tables(length: int) -> np.ndarray:
    """Return uint32 [4, 256]: at [k, v], the product of x^(8 length) and a CRC whose byte k is v, and others 0."""
    factor = appended_bytes(length)
    of_bits = [product(1 << bit, factor) for bit in range(32)]
    tables = np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            having = np.arange(256) >> bit & 1 == 1
            tables[byte, having] ^= np.uint32(of_bits[8 * byte + bit])
    return tables


def crc32_combine(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Return the CRCs of joined texts.

    Args:
      first: CRC-32 of the first texts, uint32.
      second: CRC-32 of the second texts, uint32 of the same shape.
      length: bytes of each second text.
    """
    shifted = np.zeros_like(first)
    for byte, table in enumerate(_tables(length)):
        shifted ^= table[first >> np.uint32(8 * byte) & np.uint32(0xFF)]
    return shifted ^ second


def joined(crcs: np.ndarray, length: int) -> int:
    """Return the CRC-32 of a text from those of its parts.

    Args:
      crcs: CRC-32 of each part, uint32 [parts], in the order of the text.
      length: bytes of each part; all have the same length.
    """
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.concatenate([np.zeros(1, np.uint32), crcs])  # the CRC of an empty text is 0
        crcs, length = crc32_combine(crcs[::2], crcs[1::2], length), 2 * length
    return int(crcs[0]) if len(crcs) else 0
