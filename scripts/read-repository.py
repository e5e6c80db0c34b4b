#!/usr/bin/env python3
"""Reads a repository of Umbra without Umbra: an independent reader, written from docs/repository-format.md alone.

    read-repository.py DIRECTORY                          lists recovery points and their streams
    read-repository.py DIRECTORY POINT STREAM OUTPUT      writes a stream to a file, every record proven by its digest
    --no-digests                                          believes the records, which is much faster

For the day on which nothing else is at hand: Python's standard library and the zstd library (libzstd.so.1) are all it
takes. Repositories without encryption, in a directory. It needs no index: packs tell what they hold.
"""
import argparse, ctypes, ctypes.util, json, os, pathlib, struct, sys, zlib

PACK_HEADER, FOOTER, TOC_ENTRY, RECORD_HEADER = 40, 64, 48, 56
PLACES, ID, BLOCK = 4096, 32, 65536
KNOWN_FEATURES = {'parts'}


class Damaged(Exception):
    pass


def check(condition, why):
    if not condition:
        raise Damaged(why)


# BLAKE3, as in its specification, section 2; no keys, no derivation.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
ROUNDS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def compress(value, words, counter, length, flags):
    s = list(value) + list(IV[:4]) + [counter & 0xFFFFFFFF, counter >> 32, length, flags]
    mask = 0xFFFFFFFF
    for turn in range(7):
        for i, (a, b, c, d) in enumerate(ROUNDS):
            x, y = words[2 * i], words[2 * i + 1]
            sa = (s[a] + s[b] + x) & mask
            v = s[d] ^ sa
            sd = ((v >> 16) | (v << 16)) & mask
            sc = (s[c] + sd) & mask
            v = s[b] ^ sc
            sb = ((v >> 12) | (v << 20)) & mask
            sa = (sa + sb + y) & mask
            v = sd ^ sa
            sd = ((v >> 8) | (v << 24)) & mask
            sc = (sc + sd) & mask
            v = sb ^ sc
            s[a], s[b], s[c], s[d] = sa, ((v >> 7) | (v << 25)) & mask, sc, sd
        words = [words[i] for i in ORDER]
    return [s[i] ^ s[i + 8] for i in range(8)]


def chunk_value(data, number, root):
    value = IV
    blocks = range(0, max(len(data), 1), 64)
    for at in blocks:
        block = data[at : at + 64]
        flags = (CHUNK_START if at == 0 else 0) | ((CHUNK_END | root) if at == blocks[-1] else 0)
        value = compress(value, struct.unpack('<16I', block.ljust(64, b'\0')), number, len(block), flags)
    return value


def subtree(data, first, root):
    if len(data) <= 1024:
        return chunk_value(data, first, root)
    left = 1024
    while left * 2 < len(data):
        left *= 2
    words = subtree(data[:left], first, 0) + subtree(data[left:], first + left // 1024, 0)
    return compress(IV, words, 0, 64, PARENT | root)


def blake3(data):
    return struct.pack('<8I', *subtree(bytes(data), 0, ROOT))


def zstd_library():
    library = ctypes.CDLL(ctypes.util.find_library('zstd') or 'libzstd.so.1')
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    return library


class Repository:
    def __init__(self, directory, digests=True):
        self.directory = pathlib.Path(directory)
        self.digests = digests
        self.zstd = zstd_library()
        self.config = self.sealed(self.directory / 'umbra-repository.json', 'repository')
        self.records = {}
        self.recent = {}
        for pack in sorted((self.directory / 'packs').glob('*/*')):
            self.read_pack_end(pack)

    def sealed(self, path, kind):
        header_line, body = path.read_bytes().split(b'\n', 1)
        header = json.loads(header_line)
        check(header['umbra'] == kind and header['format'] <= 1, f'{path} is no {kind} of format 1')
        unknown = set(header['features']) - KNOWN_FEATURES
        check(not unknown, f'{path} needs {", ".join(unknown)}, which this reader does not know')
        check(not self.digests or blake3(body).hex() == header['blake3'], f'the digest of {path} does not match')
        return json.loads(body)

    def read_pack_end(self, path):
        with open(path, 'rb') as pack:
            size = os.fstat(pack.fileno()).st_size
            check(size >= PACK_HEADER + FOOTER, f'{path} is cut off')
            pack.seek(size - FOOTER)
            footer = pack.read(FOOTER)
            check(footer[:4] == b'UmTc' and footer[56:] == b'UMBRAEND', f'{path} does not end as a pack')
            check(struct.unpack_from('<I', footer, 52)[0] == zlib.crc32(footer[:52]), f'the footer of {path} is damaged')
            count, offset = struct.unpack_from('<II', footer, 4)
            pack.seek(offset)
            toc = pack.read(count * TOC_ENTRY)
        check(not self.digests or blake3(toc) == footer[16:48], f'the table of contents of {path} is damaged')
        for at in range(0, len(toc), TOC_ENTRY):
            self.records[toc[at : at + ID]] = (path, struct.unpack_from('<I', toc, at + ID)[0])

    def record(self, identity):
        """The plain bytes of a record."""
        if identity in self.recent:
            return self.recent[identity]
        check(identity in self.records, f'no pack holds {identity.hex()}')
        path, offset = self.records[identity]
        with open(path, 'rb') as pack:
            pack.seek(offset)
            header = pack.read(RECORD_HEADER)
            magic, _kind, encoding, flags, stored, plain = struct.unpack_from('<4sBBHII', header)
            check(magic == b'UmRc' and flags == 0, f'no record at {offset} of {path}')
            check(struct.unpack_from('<I', header, 52)[0] == zlib.crc32(header[:52]), 'a record header is damaged')
            check(header[16:48] == identity, 'another record stands there')
            data = pack.read(stored)
        if encoding == 1:
            target = ctypes.create_string_buffer(plain)
            check(self.zstd.ZSTD_decompress(target, plain, data, len(data)) == plain, 'a record does not decompress')
            data = target.raw
        check(len(data) == plain, 'a record has the wrong length')
        check(not self.digests or blake3(data) == identity, f'the record {identity.hex()} is damaged')
        if len(self.recent) >= 64:
            self.recent.pop(next(iter(self.recent)))
        self.recent[identity] = data
        return data

    def points(self):
        return [self.sealed(path, 'recovery point') for path in sorted((self.directory / 'points').glob('*.json'))]

    def blob(self, blob):
        return b''.join(self.record(bytes.fromhex(one)) for one in blob['chunks'])[: blob['sizeBytes']]

    def segment_bytes(self, identity):
        data = self.record(identity)
        if data[:8] == b'UMBRAPCS' and len(data) % ID == 8:  # a list of pieces
            return b''.join(self.record(data[at : at + ID]) for at in range(8, len(data), ID))
        return data

    def restore(self, stream, output):
        root = self.blob(stream['map'])
        check(root[:8] == b'UMBRASTR', 'no stream map')
        _format, _flags, chunk_size, size, count = struct.unpack_from('<HHIQI', root, 8)
        with open(output, 'wb') as out:
            out.truncate(size)
            for number in range(count):
                identity = root[32 + number * ID : 32 + (number + 1) * ID]
                if identity == bytes(ID):
                    continue
                for place, data in self.segment(self.segment_bytes(identity), chunk_size):
                    offset = (number * PLACES + place) * chunk_size
                    out.seek(offset)
                    out.write(data[: size - offset])

    def segment(self, data, chunk_size):
        """The places of a segment that are not zeros, with their bytes."""
        if len(data) % ID != 16:  # the first form: whole chunks only
            ids = iter(range(PLACES // 8, len(data), ID))
            for place in bits(data[: PLACES // 8]):
                at = next(ids)
                yield place, self.record(data[at : at + ID])
            return
        check(data[:8] == b'UMBRASEG', 'no segment with parts')
        blocks, records = struct.unpack_from('<II', data, 8)
        check(blocks == chunk_size // BLOCK, 'a segment for chunks of another size')
        used, parts = list(bits(data[16:528])), set(bits(data[528:1040]))
        wholes = [place for place in used if place not in parts]
        ids = [data[1040 + n * ID : 1040 + (n + 1) * ID] for n in range(len(wholes) + records)]
        words = 1040 + len(ids) * ID
        whole_ids = dict(zip(wholes, ids))
        for place in used:
            if place in whole_ids:
                yield place, self.record(whole_ids[place])
                continue
            chunk = bytearray(chunk_size)
            for block in range(blocks):
                (word,) = struct.unpack_from('<I', data, words + block * 4)
                if word != 0:
                    record = self.record(ids[len(wholes) + (word >> 8) - 1])
                    part = record[(word & 255) * BLOCK : ((word & 255) + 1) * BLOCK]
                    chunk[block * BLOCK : block * BLOCK + len(part)] = part
            words += blocks * 4
            yield place, bytes(chunk)


def bits(bitmap):
    return (place for place in range(len(bitmap) * 8) if bitmap[place >> 3] >> (place & 7) & 1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('directory')
    arguments.add_argument('wanted', nargs='*', metavar='POINT STREAM OUTPUT')
    arguments.add_argument('--no-digests', action='store_true')
    options = arguments.parse_args()
    if len(options.wanted) not in (0, 3):
        arguments.error('name a recovery point, a stream and an output file, or nothing')
    repository = Repository(options.directory, not options.no_digests)
    if not options.wanted:
        for point in repository.points():
            print(point['id'])
            for stream in point['streams']:
                print(f'  {stream["name"]}: {stream["sizeBytes"]} bytes')
        return
    wanted, name, output = options.wanted
    for point in repository.points():
        if point['id'] == wanted:
            for stream in point['streams']:
                if stream['name'] == name:
                    return repository.restore(stream, output)
    sys.exit(f'there is no stream {name} in a recovery point {wanted}')


if __name__ == '__main__':
    try:
        main()
    except Damaged as damage:
        sys.exit(f'damaged: {damage}')
